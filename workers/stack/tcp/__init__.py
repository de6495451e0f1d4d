"""TCP, the passive side (RFC 9293).

connection  one flow: arriving segments, the relay's calls, timers; everything meets here
header      headers of outgoing data segments, all constant parts computed beforehand
receiver    sequence space of the application's data: window, out-of-order ranges, backlog, SACK blocks
sender      sequence space of our data: what is in flight, what is lost, what may be sent next
buffer      our data until it is acknowledged, in chunks from a free list
rtt, congestion, seqnum, states
"""

"""TCP, the passive side (RFC 9293).

connection  one flow: arriving segments, the relay's calls, timers; everything meets here
receiver    the application's data: window, out-of-order ranges, backlog, SACK blocks
sender      our data: what is in flight and what may be sent next; uses
            buffer (the bytes, in chunks), flight (scoreboard), rack (loss detection), rtt, congestion
output      segments leaving; uses header (constant parts packed beforehand)
seqnum, states, mss, nobody
"""

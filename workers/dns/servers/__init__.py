"""How a question reaches each kind of server.

known      hosts, fakeip, rcode: answered at once           local      those of /etc/resolv.conf
udp        with TCP for what is too long, or when UDP is not to be had
stream     one kept connection: framed (TCP, TLS), https
failover   several servers, the one that works first        addressee  the server that the program has asked
"""

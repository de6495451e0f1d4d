"""The crash suite: kills and breaks whatever can be, again and again, and ends with one table. `make crash`.

rows       all lines of the table, in order
report     a line, the table, and the file that findings are kept in
traffic    flows whose every byte is compared while something happens to the engine

journal    master, helper and guardian killed at every step of what they do to the network
ends       the whole engine ends: killed, stopped, power lost, started twice, with a kill switch
processes  worker, guardian, HTTP process under flows: killed, stopped, too large, out of descriptors
proxies    the proxy dies, hangs, is slow
network    interfaces go down and up, the default route moves
reload     reloads under a thousand flows
anyone     whatever process it is, at whatever moment
"""

"""50,000 flows at once: how many are held, in how much memory, and whether every byte arrives. `make flows`.

lab      namespaces with many addresses, proxies, targets, the engine
holder   the applications: opens the flows and has each carry bytes
verdict  what was promised, and the table
"""

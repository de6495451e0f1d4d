"""The crash suite: kills and breaks whatever can be, again and again, and ends with one table. `make crash`.

report     the table
processes  master, worker, guardian and tun, under flows whose every byte is compared
journal    master, helper and guardian killed at every step of what they do to the network
"""

"""The crash suite: kills and breaks whatever can be, again and again, and ends with one table. `make crash`.

report     the table
journal    master, helper and guardian killed at every step of what they do to the network
"""

"""Hostile input: seeded, so that whatever fails fails again with the same seed.

    python -m tests.fuzz --inputs 200000 --seed 1              a few seconds
    python -m tests.fuzz --seed 1 --episode 4711               the one episode that a failure named

An episode is a few hundred inputs to one target (targets.py), all drawn from Random(f"{seed}/{episode}"):

seeds.py      packets as a kernel sends them, of every shape the code knows
mutation.py   damages them
world.py      a live stack with a relay that does as it likes; asserts what must hold whatever arrives
targets.py    the other entry points: flow key, fragments, codecs of IP, TCP options and SOCKS5, sniffers
"""

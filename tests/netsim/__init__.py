"""A deterministic network: stacks, a path with every kind of damage, and simulated time. Nothing of it depends on the machine.

    near: Side ═══ Lane up ══> ═══ far: Side
               <══ Lane down ═══

sides.py     what stands at the ends: our stack (StackSide), or the independent client of tests/support/tcp_peer.py (PeerSide)
network.py   carries packets between two sides and moves the time
joined.py    two of our stacks as the ends of one connection
table.py     what they reach over many paths: `python -m tests.netsim` prints the committed table, --write renews it
"""

"""What honest flows keep while the engine is attacked: `python -m loadtests.hostile --help`.

    client: iperf3, connection probe ── tun0 ── engine ── veth ── internet: SOCKS server, iperf3, echo, talker
            flood.py: packets put on the tun by a packet socket, as a hostile host behind it would

attacks.py    which packets an attack consists of
flood.py      sends them, in a process of its own, at a given rate
__main__.py   runs each attack between two measurements without, and prints the table
"""

"""Keeps a proxy on this machine from being fed its own connections.

A local proxy is reached over loopback, but what it sends to its servers would enter the tun like every program's traffic,
go to the proxy again, and so on for ever. So, while an upstream is local, a worker asks before it dials:

    worker ── FindProcess ──► LoopGuard.own_proxy(flow)
                                 1. who listens at the upstream's address now?           LocalProxies  (a few us: unchanged)
                                 2. whose socket is the flow's? another user's: no       ProcessTable.find     (5 us)
                                 3. is it among the sockets of the proxy and its children?    a look at their descriptors
           ◄─ ProcessFound ──    yes: the worker dials the destination itself, from its exempt user

An address that the proxy contacts, and no application asked for, is one of its servers: it is routed around the tun, so that
later connections do not come to us at all. One that an application did ask for is not: the proxy merely carries the
application's flow out by itself, and it leaves directly for this flow alone.

Neither is a resolver of the machine fed to the proxy while that one waits for its answer.

proxies    LocalProxies: the processes behind the upstreams, found again when they start later or restart
servers    LearnedServers: what was asked for, what was learned; pure
guard      LoopGuard: the two together, and the routes
"""

import errno
import socket
from ipaddress import ip_address

__all__ = ["is_local_address"]


def is_local_address(address: str) -> bool:
    """Tell whether `address` is one of this machine's (of this network namespace's): whether a socket can be bound to it."""
    if ip_address(address).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True

"""Metrics, health and the Clash API over HTTP, in a process of its own.

    master (root)                                            HTTP process (uid 60923, no_new_privs)
    binds the sockets ── inherited ────────────────────────► accepts, reads, checks who asks (access)
    process.py: answers requests (engine/requests.py) ◄────► channel.py: one stream socket, msgpack

A process of its own, because parsing and rendering would hold up the master's event loop, which is the packet path, for
milliseconds; because whoever finds a defect in an HTTP parser is then nobody; and because the master stays small without it.

listen      HOST:PORT -> sockets, and when a secret is needed
process     the master's side: starts and watches the process, answers its requests
server      the process: routes, and the life of the application
door        connections, and what is asked too often: bounded
access      Host, Origin, secret
prometheus  counters -> metric families
"""

from dataclasses import dataclass

__all__ = ["HttpOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """What the command line and the configuration say."""

    addresses: tuple[tuple[str, int], ...]
    """Where to listen: host, empty for every address, and port."""
    is_named: bool
    """The user has named the addresses, so that they must be free; those of the default may be another program's."""
    secret: str = ""
    """Empty: none is asked for."""
    origins: tuple[str, ...] = ()
    """Whose pages may ask, beside our own and those of this machine; `*` is everybody's."""
    ui: str | None = None
    """Directory with the files of a dashboard."""

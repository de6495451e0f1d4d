"""The DNS service of a worker: port 53 of any server is answered here, where the rules say so.

    query of a program -> service.DnsService.ask
        wire.parse_query -> cache.Cache -> Answer.render                    known: a few microseconds, nothing else is touched
        rules.Chooser: which server -> servers/... .exchange -> Answer      not known: one task for all who ask the same

service   the order of things; questions under way       wire      messages as far as all of them need it (pure)
rules     DNS rules: a question -> a Choice              cache     answers and how they are given again (pure)
tcp       queries over TCP                               answers   messages made and changed (dnspython; pure)
servers/  how a question reaches each kind of server

Questions of the worker itself (names of direct flows, of a `resolve` rule) come in by DnsService.look_up.
"""

from collections.abc import Callable
from typing import Protocol

from workers.dns.wire import Query

__all__ = ["ConnectionLost", "KnowingServer", "Names", "Respond", "Server", "ServerFailed"]


class ServerFailed(Exception):
    """A server gave no answer; the text says why, for the log."""


class ConnectionLost(Exception):
    """A connection ended under a question, which may be asked again over another one (RFC 7766 6.2.4)."""


Respond = Callable[[bytes], object]
"""Takes the answer to one query; called once, now or later, or never (a rule that drops, the end of the worker)."""


class Server(Protocol):
    """Whoever a question can be given to."""

    async def exchange(self, message: bytes) -> bytes:
        """Return the answer to a message; identifiers are the server's own matter. Raises ServerFailed.

        Cancelled when the time for the question is up.
        """

    def close(self) -> None:
        """Release everything."""


class KnowingServer(Protocol):
    """A server that need not ask anybody."""

    def answer(self, query: Query) -> bytes:
        """Return the answer at once."""


class Names(Protocol):
    """Where names of fake addresses come from (shared/fakeip.py).

    busy  names that got no address for now, since another process was at the table
    """

    busy: int

    def address_of(self, name: str, version: int) -> bytes | None:
        """Return the fake address of `name`, given to it now if need be; None when it gets none."""

"""Names as the machine's own resolver knows them: the DNS service of a worker whose policy has no servers."""

import asyncio
import socket
from collections.abc import Callable, Sequence

from shared.config import Resolve
from shared.rules.flow import Ends
from workers.stack import Refusal
from workers.upstream import DestinationRefused

__all__ = ["SystemDns"]

_HEADER_LENGTH = 12
_REFUSED = b"\x80\x05"  # a response, RCODE 5 (RFC 1035 4.1.1)


class SystemDns:
    """See workers/relay/services.py, DnsService."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def ask(self, query: bytes, ends: Ends, respond: Callable[[bytes], object]) -> None:
        """There are no servers to ask: REFUSED."""
        if len(query) >= _HEADER_LENGTH:
            respond(query[:2] + _REFUSED + bytes(8))

    async def look_up(self, name: str, how: Resolve) -> Sequence[bytes]:
        """Ask getaddrinfo(3), in a thread. `how` has no meaning here but for its strategy."""
        try:
            infos = await self._loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise DestinationRefused(f"{name}: {error.strerror or error}", Refusal.HOST_UNREACHABLE) from error
        found = {4: list[bytes](), 6: list[bytes]()}
        for family, _, _, _, address in infos:
            found[4 if family == socket.AF_INET else 6].append(
                socket.inet_pton(family, str(address[0]).partition("%")[0])
            )
        order = {"ipv4_only": (4,), "ipv6_only": (6,), "prefer_ipv6": (6, 4)}.get(how.strategy or "", (4, 6))
        return [packed for version in order for packed in found[version]]

    def name_of(self, address: bytes) -> tuple[str | None, bool]:
        """No address was given out here."""
        return None, False

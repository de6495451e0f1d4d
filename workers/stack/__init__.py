"""The sans-IO TCP/IP stack: packets and `now` in, packets and callbacks out. It imports no asyncio, socket, time or os.

One packet inbound:   Stack.process -> TcpConnection.process -> TcpHandler.on_data (the relay sends it upstream)
One packet outbound:  TcpHandler's owner fills TcpConnection.send_buffer() -> commit -> Transmit (the link writes it to the tun)

`now` is always monotonic seconds. The stack never blocks and never raises on a packet: garbage is dropped and counted.
Every packet given to it and every packet it emits begins with the 10-byte virtio header (shared/wire/virtio.py). When the
tun has none, StackConfig.offload is False: the header is all zero, checksums are complete, no packet exceeds the MTU.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from shared.buffer import Buffer

__all__ = ["CloseReason", "DatagramHandler", "Refusal", "TcpHandler", "Transmit"]


class Transmit(Protocol):
    """Writes one packet to the tun: header bytes (virtio + IP + TCP/UDP), then payload pieces, valid only during the call."""

    def __call__(self, parts: Sequence[Buffer], /) -> None: ...


class Refusal(Enum):
    """Why a flow is not carried, and so what the application is told.

    value: (ICMPv4 type, code), (ICMPv6 type, code); None means a TCP RST (RFC 792, RFC 1812 5.2.7, RFC 4443 3.1).
    """

    REFUSED = None
    """The destination refused: RST for TCP."""
    NET_UNREACHABLE = ((3, 0), (1, 0))
    HOST_UNREACHABLE = ((3, 1), (1, 3))
    PORT_UNREACHABLE = ((3, 3), (1, 4))
    PROHIBITED = ((3, 13), (1, 1))
    """Forbidden by the proxy's rules: communication administratively prohibited."""


class CloseReason(Enum):
    """How a TCP connection ended, as told to its handler."""

    FINISHED = "finished"  # both FINs sent and acknowledged
    RESET = "reset"  # the application sent RST
    TIMEOUT = "timeout"  # the application stopped answering
    ABORTED = "aborted"  # by TcpConnection.abort / refuse
    EVICTED = "evicted"  # a limit of the stack was reached


class TcpHandler(Protocol):
    """The relay's side of one TCP connection. Called by the stack; must not raise."""

    def on_data(self, data: memoryview, /) -> int:
        """In-order payload. Return how many bytes were taken, 0..len(data).

        The view is dead after the return: keep nothing of it. What was not taken the stack copies, keeps and holds
        against the receive window; it is offered again after TcpConnection.resume.
        """

    def on_eof(self) -> None:
        """The application closed its side and every byte before its FIN has been taken."""

    def on_send_space(self) -> None:
        """Send-buffer space is free again after send_buffer returned None."""

    def on_closed(self, reason: CloseReason, /) -> None:
        """The connection is gone; called exactly once, the last call. Release the upstream."""


class DatagramHandler(Protocol):
    """The relay's side of UDP: called for each valid datagram of the application."""

    def __call__(
        self,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: memoryview,
        /,
    ) -> None:
        """`version` 4 or 6, addresses packed (4 or 16 bytes), `payload` dead after the return."""

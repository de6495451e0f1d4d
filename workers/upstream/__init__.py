"""Upstream proxies: a TCP connection through one (socks.py), UDP through SOCKS5 UDP ASSOCIATE (socks5_udp.py).

An attempt either gives a socket or raises an UpstreamError that says what the application is to be told.
"""

from workers.stack import Refusal

__all__ = ["DestinationRefused", "ProxyFailed", "UdpUnsupported", "UpstreamError"]


class UpstreamError(Exception):
    """The flow is not carried; `refusal` is the answer for the application, the text is for the log."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


class DestinationRefused(UpstreamError):
    """The proxy works and says that this destination cannot be had."""


class ProxyFailed(UpstreamError):
    """The proxy itself cannot be reached, does not speak its protocol, or refuses our credentials.

    Never REFUSED: the application must not conclude that the destination closed its port.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.NET_UNREACHABLE)


class UdpUnsupported(UpstreamError):
    """The proxy carries no UDP. Port unreachable makes browsers leave QUIC for TCP at once."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.PORT_UNREACHABLE)

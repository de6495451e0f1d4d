"""What a sniffer says of the first bytes of a flow."""

from typing import NamedTuple, TypeAlias

__all__ = ["Incomplete", "Result", "Sniffed"]


class Sniffed(NamedTuple):
    """A protocol, and what its first bytes tell of it."""

    protocol: str
    """One of SNIFFERS: "http", "tls", "quic", "stun", "dns", "bittorrent", "dtls", "ssh", "rdp", "ntp"."""
    domain: str | None = None
    """The server's name in lower case, without a trailing dot; None where the client names none, or an address."""
    client: str | None = None
    """The program: of quic "chromium", "firefox", "quic-go" or "safari" where it can be told; of ssh its software and version."""
    alpn: tuple[str, ...] = ()
    """Of tls and quic: the application protocols that the client offers, in its order (RFC 7301)."""


class Incomplete(NamedTuple):
    """More bytes of the client may tell more. They need not come: the caller sets a time limit."""

    so_far: Sniffed | None = None
    """What is certain already and holds when the time limit runs out."""
    needed: int = 0
    """Of a stream: another look tells nothing new before the client has sent this many bytes in all. Looking earlier is
    allowed, but costs: a ClientHello in records of one byte is walked through again each time."""


Result: TypeAlias = Sniffed | Incomplete | None
"""None: nothing is known, and more bytes would not change that."""

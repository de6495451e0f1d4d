"""The 4 bytes before each packet of a macOS utun: the protocol family, in network order (net/if_utun.h of xnu)."""

from shared.buffer import Buffer

__all__ = ["FAMILY_LEN", "family_of"]

FAMILY_LEN = 4
_INET = b"\x00\x00\x00\x02"
_INET6 = b"\x00\x00\x00\x1e"


def family_of(version: int) -> Buffer:
    """Return what stands before a packet of IPv4 or IPv6. The kernel goes by it, and not by the packet."""
    return _INET if version == 4 else _INET6

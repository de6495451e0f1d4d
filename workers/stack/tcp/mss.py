"""How much payload a segment may carry. Sizes in bytes; an MSS here does not count the options, as in RFC 6691."""

from shared.wire import ip
from workers.stack.tcp.buffer import CHUNK_SIZES

__all__ = ["largest_payload", "mss_of_path", "mss_of_syn"]

DEFAULT = {4: 536, 6: 1220}  # RFC 9293 3.7.1 (MUST-15), when the SYN names none
MINIMUM = 88  # a tiny MSS would make us send a header per few bytes (CVE-2019-11479); Linux stops at 48
MTU_MINIMUM = {4: 552, 6: 1280}  # believed of an ICMP "too big": Linux' min_pmtu, and RFC 8201 4
TCP_HEADER = 20
TIMESTAMPS = 12


def mss_of_syn(version: int, offered: int | None, own: int, *, timestamps: bool) -> int:
    """Return the payload of our full segments: the application offered `offered`, our MTU allows `own`."""
    mss = min(max(offered or DEFAULT[version], MINIMUM), own)
    return mss - TIMESTAMPS if timestamps else mss


def mss_of_path(version: int, mtu: int, *, timestamps: bool) -> int:
    """Return the payload of full segments on a path said to take packets of `mtu` bytes."""
    mss = max(mtu, MTU_MINIMUM[version]) - ip.HEADER_LENGTH[version] - TCP_HEADER
    return mss - TIMESTAMPS if timestamps else mss


def largest_payload(version: int, mss: int) -> int:
    """Return the most of whole segments that one GSO packet and one chunk hold."""
    limit = min(65535 - ip.HEADER_LENGTH[version] - TCP_HEADER - TIMESTAMPS, CHUNK_SIZES[-1])
    return limit - limit % mss if mss <= limit else limit

"""NTP: the request of a client (RFC 5905, 7.3; of SNTP too)."""

from workers.sniff.result import Sniffed

__all__ = ["sniff"]

HEADER = 48  # bytes; extension fields and a MAC may follow, in whole words
VERSIONS = (3, 4)
CLIENT = 3  # mode
STRATUM_MAX = 16  # unsynchronized
DISPERSION_MAX = 16  # seconds (MAXDISP), of root delay and root dispersion


def sniff(datagram: bytes) -> Sniffed | None:
    """Look at the first datagram of a flow."""
    if len(datagram) < HEADER or len(datagram) % 4 or datagram[0] & 7 != CLIENT:
        return None
    version, stratum = datagram[0] >> 3 & 7, datagram[1]
    delay, dispersion = (int.from_bytes(datagram[at : at + 4], "big") / 65536 for at in (4, 8))
    sane = stratum <= STRATUM_MAX and delay <= DISPERSION_MAX and dispersion <= DISPERSION_MAX
    return Sniffed("ntp") if version in VERSIONS and sane else None

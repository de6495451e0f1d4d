"""BitTorrent: the handshake of peers on TCP (BEP 3); on UDP the SYN of uTP (BEP 29), DHT messages (BEP 5), and the request to
connect to a tracker (BEP 15). Encrypted handshakes (MSE) look like nothing, which is their purpose.
"""

from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["sniff", "sniff_stream"]

HANDSHAKE = b"\x13BitTorrent protocol"

UTP_HEADER = 20  # bytes
UTP_SYN = 4 << 4 | 1  # type ST_SYN, version 1
UTP_EXTENSIONS = (1, 2, 3)  # selective ack, extension bits, close reason

TRACKER_CONNECT = (0x41727101980).to_bytes(8, "big") + bytes(4)  # protocol id, action: connect
TRACKER_CONNECT_SIZE = 16  # bytes, with the transaction id

DHT_BEGINNINGS = (b"d1:ad", b"d1:rd", b"d1:el", b"d2:ip")  # keys are sorted: arguments, response, error, your address
DHT_KINDS = (b"1:y1:q", b"1:y1:r", b"1:y1:e")


def sniff_stream(data: bytes) -> Result:
    """Look at the first bytes of a TCP client."""
    if data[: len(HANDSHAKE)] != HANDSHAKE[: len(data)]:
        return None
    return Sniffed("bittorrent") if len(data) >= len(HANDSHAKE) else Incomplete()


def sniff(datagram: bytes) -> Sniffed | None:
    """Look at the first datagram of a flow."""
    return Sniffed("bittorrent") if _is_tracker(datagram) or _is_dht(datagram) or _is_utp(datagram) else None


def _is_tracker(datagram: bytes) -> bool:
    return len(datagram) >= TRACKER_CONNECT_SIZE and datagram.startswith(TRACKER_CONNECT)


def _is_dht(datagram: bytes) -> bool:
    framed = datagram.startswith(DHT_BEGINNINGS) and datagram.endswith(b"e")
    return framed and b"1:t" in datagram and any(kind in datagram for kind in DHT_KINDS)


def _is_utp(datagram: bytes) -> bool:
    """Only a SYN: the other types have too little in their header to be told from other protocols (WireGuard, STUN)."""
    reader = Reader(datagram)
    try:
        if reader.number(1) != UTP_SYN:
            return False
        extension = reader.number(1)
        reader.take(2 + 4)  # connection id, timestamp
        if reader.number(4) != 0:  # timestamp difference: nothing was received yet
            return False
        reader.take(4 + 2 + 2)  # window, sequence and ack numbers
        while extension:
            if extension not in UTP_EXTENSIONS:
                return False
            extension = reader.number(1)
            reader.vector(1)
    except Truncated:
        return False
    return reader.left == 0

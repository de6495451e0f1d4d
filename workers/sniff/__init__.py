"""What protocol a flow speaks and which server it names, told from the first bytes of the client. Names are sing-box's.

    TCP   the bytes so far -> sniff_stream -> tls.py http.py ssh.py bittorrent.py rdp.py dns.py
    UDP   one datagram after another -> DatagramSniffer -> quic.py stun.py dtls.py dns.py bittorrent.py ntp.py

Pure: bytes in, values out; the caller holds back what it shows and sets the time limit. Nothing is raised, whatever the bytes
are, and what is looked at has a bound. A protocol whose server speaks first (SMTP, FTP) shows nothing until the limit.
"""

from collections.abc import Callable, Collection

from workers.sniff import bittorrent, dns, dtls, http, ntp, quic, rdp, ssh, stun, tls
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = [
    "DATAGRAMS_MAX",
    "SNIFFERS",
    "STREAM_MAX",
    "DatagramSniffer",
    "Incomplete",
    "Result",
    "Sniffed",
    "limits",
    "sniff_stream",
]

STREAM_MAX = 16 * 1024
"""Bytes of a TCP client that are looked at."""
DATAGRAMS_MAX = quic.DATAGRAMS_MAX
"""Datagrams of a UDP flow that are looked at; only QUIC needs more than the first."""

_STREAM: dict[str, Callable[[bytes], Result]] = {
    "tls": tls.sniff,
    "http": http.sniff,
    "ssh": ssh.sniff,
    "bittorrent": bittorrent.sniff_stream,
    "rdp": rdp.sniff,
    "dns": dns.sniff_stream,
}
_DATAGRAM: dict[str, Callable[[bytes], Sniffed | None]] = {  # in this order: what is surest first
    "stun": stun.sniff,
    "dtls": dtls.sniff,
    "dns": dns.sniff,
    "bittorrent": bittorrent.sniff,
    "ntp": ntp.sniff,
}

SNIFFERS = frozenset((*_STREAM, *_DATAGRAM, "quic"))
"""The protocols that are known."""


def limits(wanted: Collection[str]) -> list[str]:
    """Return what this installation cannot tell of the `wanted` protocols, and the way out, a sentence each."""
    if "quic" in wanted and not quic.CAN_DECRYPT:
        return [
            "the quic sniffer recognises QUIC, but cannot read the server's name without the package cryptography: "
            "pip install 'tunloom[quic]'"
        ]
    return []


def sniff_stream(data: bytes, wanted: Collection[str]) -> Result:
    """Look at the first bytes that a TCP client has sent so far, for the protocols `wanted` (of SNIFFERS).

    Incomplete: these bytes may yet become one of them; call again when there are more. None: they cannot.
    Never Incomplete when `data` has STREAM_MAX bytes.
    """
    undecided: list[Incomplete] = []
    for protocol, sniff in _STREAM.items():
        result = sniff(data[:STREAM_MAX]) if protocol in wanted else None
        if isinstance(result, Sniffed):
            return result
        if result is not None:
            undecided.append(result)
    if not undecided:
        return None
    so_far = next((result.so_far for result in undecided if result.so_far), None)
    if len(data) >= STREAM_MAX:
        return so_far
    return Incomplete(so_far, min(STREAM_MAX, *(result.needed for result in undecided)))


class DatagramSniffer:
    """Looks at successive datagrams of one UDP flow, in one direction: from the client. Its memory is bounded."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._sniffers = [sniff for protocol, sniff in _DATAGRAM.items() if protocol in wanted]
        self._quic = quic.QuicSniffer() if "quic" in wanted else None
        self._result: Result = Incomplete()

    def feed(self, datagram: bytes | memoryview) -> Result:
        """Look at the next datagram. A result other than Incomplete is final: it is returned to every later call too."""
        if isinstance(self._result, Incomplete):
            self._result = self._look(bytes(datagram))
        return self._result

    def _look(self, datagram: bytes) -> Result:
        result = self._quic.feed(datagram) if self._quic else None
        if result is None:  # of QUIC only after the first datagram, which is the only one that the others need
            result = next(filter(None, (sniff(datagram) for sniff in self._sniffers)), None)
        return result

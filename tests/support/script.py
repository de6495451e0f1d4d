"""TCP packet scripts: a client that sends exactly the packets a test writes down, and looks at those that come back.

    script process                              namespace `client`, which forwards
    plain tun, no kernel behind it   ══ script ══   engine's tun, or the way to the server itself

The same script runs against the engine and against the Linux kernel, which answers for what is right. Sequence numbers are
relative: 0 is a SYN, 1 the first byte, of either side.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count

from engine.tun.linux import open_linux_tun
from tests.support import packets
from tests.support.forwarding import forwarding
from tests.support.netns import Namespace, ip
from tests.support.tcp_peer import ACK, FIN, PSH, RST, SYN, Segment, read_segment

__all__ = ["ACK", "CLIENT", "FIN", "PSH", "RST", "SYN", "Script", "script_tun"]

CLIENT = {4: "10.78.0.2", 6: "2001:db8:78::2"}
_ROUTER = {4: "10.78.0.1/30", 6: "2001:db8:78::1/64"}
MTU = 1500
SOON = 3.0
"""Seconds in which what is expected must come; a loaded machine may take long."""

_ports = count(20000)
_MASK = 0xFFFFFFFF


@contextmanager
def script_tun(router: Namespace) -> Iterator[int]:
    """Open the tun that leads to no kernel; `router` forwards as long as the body runs."""
    with router.entered():
        tun = open_linux_tun("script", mtu=MTU, offload="no-header")
        ip("link", "set", "script", "addrgenmode", "none", "up")
        ip("addr", "add", _ROUTER[4], "dev", "script")
        ip("addr", "add", _ROUTER[6], "dev", "script", "nodad")
    with closing(tun), forwarding(router):
        yield tun.fd


class Script:
    """One conversation with the server at `endpoint`. `window`: bytes that every segment offers, unless it says otherwise."""

    def __init__(
        self, tun_fd: int, server: socket.socket, *, mss: int | None = 1460, sack: bool = True, clock: int = 0
    ) -> None:
        """`clock`: TSval of the SYN; 0: no timestamps."""
        self._fd = tun_fd
        self._server = server
        host, self._server_port = server.getsockname()[:2]
        self._version = 6 if ":" in host else 4
        self._addresses = packets.packed(CLIENT[self._version]), packets.packed(host)
        self._port = next(_ports)
        self._mss, self._sack = mss, sack
        self.clock = clock
        self.echo = 0  # TSval of the segment that came last
        self.window = 65535
        self.iss = 0xFFFFFF00  # the numbers wrap soon
        self.irs = 0
        self.acked = 0  # what `send` acknowledges unless told otherwise
        self.next = 0
        self._accepted: list[socket.socket] = []

    # the client

    def send(
        self,
        flags: int,
        text: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        clock: int | None = None,
        sack: Sequence[tuple[int, int]] = (),
        damaged: bool = False,
    ) -> None:
        """Send one segment; `seq` is by default what follows on the last."""
        at = self.next if seq is None else seq
        options = self._options(flags, self.clock if clock is None else clock, sack)
        made = packets.tcp(
            self._addresses[0], self._port, self._addresses[1], self._server_port, text,
            sequence=(self.iss + at) & _MASK,
            acknowledgment=(self.irs + (self.acked if ack is None else ack)) & _MASK if flags & ACK else 0,
            flags=flags, window=self.window if window is None else window, options=options,
        )  # fmt: skip
        if damaged:
            made = made[:-1] + bytes((made[-1] ^ 1,))
        os.write(self._fd, made)
        if seq is None:
            self.next += len(text) + bool(flags & SYN) + bool(flags & FIN)

    def _options(self, flags: int, clock: int, sack: Sequence[tuple[int, int]]) -> bytes:
        options = b""
        if flags & SYN:
            if self._mss is not None:
                options += struct.pack("!BBH", 2, 4, self._mss)
            if self._sack:
                options += b"\1\1\4\2"
        if self.clock:
            options += b"\1\1\x08\x0a" + struct.pack("!II", clock, self.echo)
        if sack:
            blocks = b"".join(struct.pack("!II", *((self.irs + edge) & _MASK for edge in block)) for block in sack)
            options += b"\1\1\5" + bytes((2 + len(blocks),)) + blocks
        return options

    def complain_too_big(self, mtu: int, about: Segment) -> None:
        """Send what a router says of a segment that did not fit (RFC 792, RFC 4443 3.2)."""
        quoted = packets.tcp(
            self._addresses[1], self._server_port, self._addresses[0], self._port, about.payload,
            sequence=(self.irs + about.seq) & _MASK, acknowledgment=(self.iss + about.ack) & _MASK,
        )  # fmt: skip
        kind, code = (3, 4) if self._version == 4 else (2, 0)
        icmp = packets.icmp(self._addresses[0], self._addresses[1], kind, code, struct.pack("!I", mtu) + quoted[:512])
        os.write(self._fd, icmp)

    # what comes back

    def expect(
        self,
        flags: int,
        text: bytes | None = None,
        *,
        seq: int | None = None,
        ack: int | None = None,
        within: float = SOON,
    ) -> Segment:
        """Wait for a segment with just these flags (PSH aside), and these fields if given; others are passed over.

        Its numbers are made relative. Raises AssertionError when it does not come in time, or RST does instead.
        """
        deadline = time.monotonic() + within
        seen = []
        while (segment := self._receive(deadline)) is not None:
            wanted = segment.flags & ~PSH == flags and (text is None or segment.payload == text)
            if wanted and seq in (None, segment.seq) and ack in (None, segment.ack):
                self.echo = segment.timestamps[0] if segment.timestamps else 0
                return segment
            seen.append(f"flags {segment.flags:#x} seq {segment.seq} ack {segment.ack} {len(segment.payload)} bytes")
            assert not segment.flags & RST, f"RST instead of {flags:#x}"
        raise AssertionError(f"{flags:#x} seq {seq} ack {ack} did not come; but: {seen}")

    def expect_text(self, size: int, *, seq: int = 1) -> list[Segment]:
        """Wait for segments that hold positions seq..seq+size, in any order; return all with text that came."""
        missing = set(range(seq, seq + size))
        seen = []
        deadline = time.monotonic() + SOON
        while missing:
            segment = self._receive(deadline)
            assert segment is not None, f"{len(missing)} bytes did not come"
            assert not segment.flags & RST, "RST instead of text"
            if segment.payload:
                missing -= set(range(segment.seq, segment.seq + len(segment.payload)))
                seen.append(segment)
        return seen

    def expect_no(self, flags: int, *, seconds: float) -> list[Segment]:
        """Assert that for a while no segment with any of `flags` comes; return those that do."""
        deadline = time.monotonic() + seconds
        seen = []
        while (segment := self._receive(deadline)) is not None:
            assert not segment.flags & flags, f"flags {segment.flags:#x} came"
            seen.append(segment)
        return seen

    def _receive(self, deadline: float) -> Segment | None:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._fd], [], [], left)[0]:
                return None
            packet = os.read(self._fd, 65535)
            version, protocol = packet[0] >> 4, packet[9 if packet[0] >> 4 == 4 else 6]
            if version != self._version or protocol != packets.TCP:
                continue
            segment = read_segment(packets.VIRTIO_NONE + packet)
            if segment.destination_port != self._port:
                continue  # of an earlier script
            if segment.flags & SYN:
                self.irs = segment.seq
            segment.seq = self._relative(segment.seq, self.irs)
            segment.ack = self._relative(segment.ack, self.iss)
            return segment
        return None

    @staticmethod
    def _relative(number: int, first: int) -> int:
        return ((number - first + 0x80000000) & _MASK) - 0x80000000

    # usual openings

    def open(self) -> socket.socket:
        """Complete a handshake; return the server's socket."""
        self.send(SYN)
        self.expect(SYN | ACK, ack=1)
        self.acked = 1
        self.send(ACK)
        return self.accept()

    def accept(self) -> socket.socket:
        """Return the server's socket of a handshake that was completed."""
        peer, _ = self._server.accept()
        peer.settimeout(10)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted.append(peer)
        return peer

    def acknowledge(self, position: int, **fields: int) -> None:
        """Acknowledge all before `position`."""
        self.acked = position
        self.send(ACK, **fields)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the conversation, whatever its state, and close the server's side of it."""
        self.send(RST, clock=self.clock + 100_000)
        for peer in self._accepted:
            peer.close()

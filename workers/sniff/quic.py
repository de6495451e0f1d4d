"""QUIC versions 1 and 2: the ClientHello in the Initial packets of a client (RFC 9000, RFC 9001, RFC 9369).

    datagram -> packets -> header protection off -> AEAD off -> CRYPTO frames -> ClientHello

A ClientHello with post-quantum key shares takes two datagrams, and Chromium sends its pieces out of order; a retry or a loss
sends pieces again. The AEAD needs the package cryptography (extra "quic"). Without it a flow is told by its first header, and
the server's name stays unknown.
"""

import hmac
from typing import NamedTuple

from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed
from workers.sniff.tls import CLIENT_HELLO, HANDSHAKE_HEADER, HELLO_MAX, ClientHello, client_hello

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:
    CAN_DECRYPT = False
else:
    CAN_DECRYPT = True

__all__ = ["CAN_DECRYPT", "DATAGRAMS_MAX", "QuicSniffer"]

DATAGRAMS_MAX = 8
"""Datagrams of a flow that are looked into; a ClientHello takes one or two, each of which may be sent again."""
PACKETS_MAX = 4  # Initial packets in one datagram
FRAMES_MAX = 512  # CRYPTO frames held of one flow; Chromium cuts a ClientHello into some twenty
DATAGRAM_MIN = 1200  # bytes; a client pads its Initial packets to this (RFC 9000, 14.1)
CONNECTION_ID_MAX = 20  # RFC 9000, 17.2

LONG_HEADER = 0x80
FIXED_BIT = 0x40

PADDING, PING, ACK, ACK_ECN, CRYPTO, CONNECTION_CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C  # RFC 9000, 19


class _Version(NamedTuple):
    salt: bytes
    initial: int  # type of an Initial packet, in bits 4 and 5 of the first byte
    label: bytes


_VERSIONS = {
    0x00000001: _Version(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), 0, b"quic"),  # RFC 9001, 5.2
    0x6B3343CF: _Version(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), 1, b"quicv2"),  # RFC 9369, 3
}


class _Initial(NamedTuple):
    version: _Version
    destination: bytes  # connection id
    packet: bytes  # from the first byte to the end of this packet
    number_at: int  # offset of the packet number


class QuicSniffer:
    """Looks at successive datagrams of one flow. Holds at most HELLO_MAX bytes of them, and looks at DATAGRAMS_MAX."""

    def __init__(self) -> None:
        self._destination: bytes | None = None  # connection id that the keys are made of
        self._crypto = _CryptoStream()
        self._datagrams = 0

    def feed(self, datagram: bytes) -> Result:
        """Look at the next datagram. Not to be called again after a result other than Incomplete."""
        self._datagrams += 1
        initials = _initials(datagram)
        if not CAN_DECRYPT:
            return Sniffed("quic") if initials and len(datagram) >= DATAGRAM_MIN else None
        payloads = [payload for initial in initials if (payload := self._open(initial)) is not None]
        if self._datagrams == 1 and not payloads:
            return None
        for payload in payloads:
            self._crypto.read_frames(payload)
        certain = Sniffed("quic")
        message = self._crypto.message()
        if message is not None:
            hello = client_hello(message)
            return Sniffed("quic", hello.server_name, _client(hello), hello.alpn) if hello else certain
        return certain if self._datagrams == DATAGRAMS_MAX or self._crypto.hopeless else Incomplete(certain)

    def _open(self, initial: _Initial) -> bytes | None:
        """Return the frames in an Initial packet; None if it is not authentic.

        The keys stay those of the first destination while the server gives itself another (RFC 9001, 5.2); only a retry makes
        new ones.
        """
        for destination in dict.fromkeys((self._destination or initial.destination, initial.destination)):
            payload = _Keys(initial.version, destination).open(initial)
            if payload is not None:
                self._destination = destination
                return payload
        return None


def _initials(datagram: bytes) -> list[_Initial]:
    """Return the Initial packets in a datagram, which may hold packets of other types too (RFC 9000, 12.2)."""
    found: list[_Initial] = []
    reader = Reader(datagram)
    try:
        while reader.left and len(found) < PACKETS_MAX:
            start = reader.at
            first = reader.number(1)
            version = _VERSIONS.get(reader.number(4))
            if version is None or first & (LONG_HEADER | FIXED_BIT) != LONG_HEADER | FIXED_BIT:
                break
            destination, source = reader.vector(1), reader.vector(1)
            if max(len(destination), len(source)) > CONNECTION_ID_MAX:
                break
            initial = first >> 4 & 3 == version.initial
            if initial:
                reader.take(reader.varint())  # token
            length = reader.varint()
            number_at = reader.at - start
            reader.take(length)
            if initial:
                found.append(_Initial(version, destination, datagram[start : reader.at], number_at))
    except Truncated:
        pass
    return found


class _Keys:
    """The keys that protect a client's Initial packets (RFC 9001, 5.2; labels of version 2: RFC 9369, 3.3.1)."""

    def __init__(self, version: _Version, destination: bytes) -> None:
        initial_secret = hmac.digest(version.salt, destination, "sha256")  # HKDF-Extract
        secret = _expand(initial_secret, b"client in", 32)
        self._aead = AESGCM(_expand(secret, version.label + b" key", 16))
        self._iv = int.from_bytes(_expand(secret, version.label + b" iv", 12), "big")
        self._header = Cipher(algorithms.AES(_expand(secret, version.label + b" hp", 16)), modes.ECB())

    def open(self, initial: _Initial) -> bytes | None:
        """Return the payload of the packet; None if it is not authentic under these keys (RFC 9001, 5.3 and 5.4)."""
        packet, number_at = initial.packet, initial.number_at
        sample = packet[number_at + 4 : number_at + 20]
        if len(sample) < 16:
            return None
        mask = self._header.encryptor().update(sample)
        first = packet[0] ^ mask[0] & 0x0F
        payload_at = number_at + (first & 3) + 1
        number = bytes(a ^ b for a, b in zip(packet[number_at:payload_at], mask[1:], strict=False))
        nonce = (self._iv ^ int.from_bytes(number, "big")).to_bytes(12, "big")
        try:
            return self._aead.decrypt(nonce, packet[payload_at:], bytes((first,)) + packet[1:number_at] + number)
        except InvalidTag:
            return None


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, 7.1) with SHA-256 and no context, for at most one hash of output."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return hmac.digest(secret, info + b"\1", "sha256")[:size]


class _CryptoStream:
    """The handshake messages that CRYPTO frames carry, put in order (RFC 9000, 7.5)."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}  # offset -> the longest piece that begins there

    @property
    def hopeless(self) -> bool:
        """Whether nothing more is taken, because a bound is reached."""
        return len(self._pieces) >= FRAMES_MAX

    def read_frames(self, payload: bytes) -> None:
        """Keep the CRYPTO frames of a packet; stops at a frame that may not be there (RFC 9000, 12.4)."""
        reader = Reader(payload)
        try:
            while reader.left:
                kind = reader.number(1)
                if kind == PADDING:
                    reader.at = len(payload) - len(payload[reader.at :].lstrip(b"\0"))
                elif kind in (ACK, ACK_ECN):
                    reader.varint(), reader.varint()  # largest acknowledged, delay
                    for _ in range(1 + 2 * reader.varint() + (3 if kind == ACK_ECN else 0)):
                        reader.varint()  # ranges, counts
                elif kind == CRYPTO:
                    self._add(reader.varint(), reader.take(reader.varint()))
                elif kind != PING:
                    break
        except Truncated:
            pass

    def _add(self, offset: int, piece: bytes) -> None:
        fits = offset + len(piece) <= HANDSHAKE_HEADER + HELLO_MAX
        if fits and not self.hopeless and len(piece) > len(self._pieces.get(offset, b"")):
            self._pieces[offset] = piece

    def message(self) -> bytes | None:
        """Return the body of the first message, a ClientHello, when all of it is there."""
        joined = bytearray()
        for offset in sorted(self._pieces):
            if offset > len(joined):
                break
            joined += self._pieces[offset][len(joined) - offset :]
        size = int.from_bytes(joined[1:HANDSHAKE_HEADER], "big")
        if len(joined) < HANDSHAKE_HEADER + size or not joined:
            return None
        return bytes(joined[HANDSHAKE_HEADER : HANDSHAKE_HEADER + size]) if joined[0] == CLIENT_HELLO else b""


APPLICATION_SETTINGS = frozenset((0x4469, 0x44CD))  # ALPS, old and new: only Chromium's
DELEGATED_CREDENTIALS = 0x0022  # RFC 9345; with the next one NSS, which is Firefox
RECORD_SIZE_LIMIT = 0x001C  # RFC 8449
SIGNED_CERTIFICATE_TIMESTAMP = 0x0012  # RFC 6962, 3.3.1; with the next one Go's crypto/tls
RENEGOTIATION_INFO = 0xFF01  # RFC 5746; says nothing in TLS 1.3


def _client(hello: ClientHello) -> str | None:
    """Return the program, in the names of sing-box, where its TLS library gives it away."""
    extensions = hello.extensions
    if extensions & APPLICATION_SETTINGS:
        return "chromium"
    if extensions >= {DELEGATED_CREDENTIALS, RECORD_SIZE_LIMIT}:
        return "firefox"
    if extensions >= {SIGNED_CERTIFICATE_TIMESTAMP, RENEGOTIATION_INFO}:
        return "quic-go"
    if (
        hello.groups and hello.groups[0] & 0x0F0F == 0x0A0A
    ):  # GREASE (RFC 8701), which Chromium does not use in QUIC groups
        return "safari"
    return None

"""TLS: the server name and the application protocols in a ClientHello (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2).

    record:     | 22 | 3 | 0..4 | length (2) |  a piece of the handshake message, 1 to 16,384 bytes             (RFC 8446, 5.1)
    handshake:  |  1 | length (3) |  body of the ClientHello                                                   (RFC 8446, 4)

The message may be cut into records anywhere, even within its header, and the records into segments anywhere.
"""

from typing import NamedTuple

from workers.sniff.domain import domain_name
from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["CLIENT_HELLO", "HANDSHAKE_HEADER", "HELLO_MAX", "ClientHello", "client_hello", "sniff"]

HANDSHAKE = 22  # content type of the record
RECORD_HEADER = 5  # bytes
RECORD_MAX = 1 << 14  # bytes of plaintext in a record
CLIENT_HELLO = 1
HANDSHAKE_HEADER = 4  # bytes
HELLO_MAX = 1 << 14
"""Bytes of a ClientHello that is looked into; with post-quantum key shares real ones have 1,800."""

SERVER_NAME = 0  # RFC 6066, 3
HOST_NAME = 0  # the only type of server name
SUPPORTED_GROUPS = 10  # RFC 8422, 5.1.1
ALPN = 16  # RFC 7301, 3.1


class ClientHello(NamedTuple):
    """The fields that tell where a client goes, and what it is."""

    server_name: str | None
    alpn: tuple[str, ...]
    extensions: frozenset[int]
    """Types of all extensions."""
    groups: tuple[int, ...]
    """Named groups for key exchange, in the order of preference."""


def sniff(data: bytes) -> Result:
    """Look at the first bytes of a TCP client."""
    message = bytearray()
    at, size = 0, len(data)
    undecided = Incomplete()
    while at < size:
        header = data[at : at + RECORD_HEADER]
        if header[0] != HANDSHAKE or (len(header) > 1 and header[1] != 3) or (len(header) > 2 and header[2] > 4):
            return None
        if len(header) < RECORD_HEADER:
            break
        length = header[3] << 8 | header[4]
        if not 0 < length <= RECORD_MAX:
            return None
        at += RECORD_HEADER
        message += data[at : at + length]
        at += length
        if message and message[0] != CLIENT_HELLO:
            return None
        if len(message) < HANDSHAKE_HEADER:
            continue
        certain = Sniffed("tls")
        end = HANDSHAKE_HEADER + int.from_bytes(message[1:HANDSHAKE_HEADER], "big")
        if end > HANDSHAKE_HEADER + HELLO_MAX:
            return certain
        if len(message) >= end:
            hello = client_hello(bytes(message[HANDSHAKE_HEADER:end]))
            return Sniffed("tls", hello.server_name, alpn=hello.alpn) if hello else None
        undecided = Incomplete(certain, size + end - len(message))
    return undecided


def client_hello(body: bytes) -> ClientHello | None:
    """Return what the body of a ClientHello says; None if it is malformed."""
    reader = Reader(body)
    try:
        if reader.number(1) != 3:  # major part of legacy_version
            return None
        reader.take(1 + 32)  # minor part; random
        reader.vector(1)  # session id
        reader.vector(2)  # cipher suites
        reader.vector(1)  # compression methods
        extensions = _extensions(reader.vector(2)) if reader.left else {}
    except Truncated:
        return None
    return ClientHello(
        _server_name(extensions.get(SERVER_NAME, b"")),
        _protocols(extensions.get(ALPN, b"")),
        frozenset(extensions),
        _groups(extensions.get(SUPPORTED_GROUPS, b"")),
    )


def _extensions(block: bytes) -> dict[int, bytes]:
    """Return the contents of each extension by its type. Raises Truncated."""
    reader = Reader(block)
    found = {}
    while reader.left:
        kind = reader.number(2)
        found[kind] = reader.vector(2)
    return found


def _groups(extension: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(extension[at : at + 2], "big") for at in range(2, len(extension), 2))


def _server_name(extension: bytes) -> str | None:
    """Return the host name of a server_name extension; None when it is empty, malformed, or names an address."""
    try:
        names = Reader(Reader(extension).vector(2))
        while names.left:
            kind, name = names.number(1), names.vector(2)
            if kind == HOST_NAME:
                return domain_name(name)
    except Truncated:
        pass
    return None


def _protocols(extension: bytes) -> tuple[str, ...]:
    """Return the protocol names of an ALPN extension, up to where it is malformed; GREASE (RFC 8701) stays in, escaped."""
    found = []
    try:
        names = Reader(Reader(extension).vector(2))
        while names.left:
            found.append(names.vector(1).decode("ascii", "backslashreplace"))
    except Truncated:
        pass
    return tuple(found)

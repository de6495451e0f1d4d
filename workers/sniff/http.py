"""HTTP/1: the Host of a request (RFC 9112, 3.2). A connection that begins with the preface of HTTP/2 goes to http2.py."""

import re

from workers.sniff import http2
from workers.sniff.domain import domain_of_authority
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["sniff"]

METHOD_MAX = 32  # characters; the longest registered one, UPDATEREDIRECTREF, has 17

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token (RFC 9110, 5.6.2)
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]*")  # raw bytes beyond ASCII are sent by careless clients
_VERSION = re.compile(rb"HTTP/1\.[0-9]\r?")
_HOST_OR_END = re.compile(rb"\n(?:host:([^\n]*)\n|\r?\n)", re.IGNORECASE)  # one scan, no backtracking
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


def sniff(data: bytes) -> Result:
    """Look at the first bytes of a TCP client."""
    if data[: len(http2.PREFACE)] == http2.PREFACE[: len(data)]:
        return http2.sniff(data)
    line, newline, _ = data.partition(b"\n")
    method, _, rest = line.partition(b" ")
    target, space, version = rest.partition(b" ")
    if len(method) > METHOD_MAX or not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
        return None
    if not newline:
        may_become_version = _VERSION.fullmatch(version + b"HTTP/1.1\r"[len(version) :])
        return Incomplete() if not space or may_become_version else None
    if not target or not _VERSION.fullmatch(version):
        return None
    if method == b"CONNECT":
        return Sniffed("http", domain_of_authority(target))  # authority-form (RFC 9112, 3.2.3)
    if absolute := _ABSOLUTE.match(target):
        return Sniffed("http", domain_of_authority(absolute[1]))  # overrides Host (RFC 9112, 3.2.2)
    found = _HOST_OR_END.search(data, len(line))
    if found is None:
        return Incomplete(Sniffed("http"))
    return Sniffed("http", domain_of_authority((found[1] or b"").strip()))

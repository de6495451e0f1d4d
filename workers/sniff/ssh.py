"""SSH: the identification string of the client (RFC 4253, 4.2). Software and comments tell the program."""

from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["sniff"]

PREFIX = b"SSH-2.0-"
LINE_MAX = 255  # bytes with CR LF


def sniff(data: bytes) -> Result:
    """Look at the first bytes of a TCP client. A client sends no lines before its identification, only a server may."""
    if data[: len(PREFIX)] != PREFIX[: len(data)]:
        return None
    line, newline, _ = data[:LINE_MAX].partition(b"\n")
    if not newline:
        if len(data) >= LINE_MAX:
            return None
        return Incomplete(Sniffed("ssh") if len(data) >= len(PREFIX) else None)
    program = line[len(PREFIX) :].rstrip(b"\r")
    printable = program.isascii() and program.decode("ascii").isprintable()
    return Sniffed("ssh", client=program.decode("ascii")) if program and printable else None

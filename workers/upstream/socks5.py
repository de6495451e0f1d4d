"""SOCKS5 as its client speaks it (RFC 1928, RFC 1929): what CONNECT and UDP ASSOCIATE have in common.

python-socks speaks it, too, and takes several times as long, which is felt in every new connection (docs/performance.md).
"""

from typing import TYPE_CHECKING

from python_socks._errors import IncompleteReadError

from shared.config import ProxyConfig
from shared.wire.socks5 import (
    DOMAIN,
    IPV4,
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    PASSWORD_VERSION,
    USERNAME_PASSWORD,
    VERSION,
    Reply,
    parse_address,
)
from workers.upstream import ProxyFailed

if TYPE_CHECKING:
    from workers.upstream.socks import ProxyStream

__all__ = ["authenticate", "read_reply", "reply_name"]

_HEAD = 5  # bytes of a reply that tell its length: up to ATYP and the first of the address, which may be the length of a name


async def authenticate(stream: "ProxyStream", proxy: ProxyConfig) -> None:
    """Agree on a method (RFC 1928, section 3) and give the password if it is asked for (RFC 1929).

    Raises ProxyFailed, IncompleteReadError, OSError.
    """
    methods = [NO_AUTHENTICATION] if proxy.username is None else [NO_AUTHENTICATION, USERNAME_PASSWORD]
    await stream.write(bytes((VERSION, len(methods), *methods)))
    version, method = await stream.read_exactly(2)
    if version != VERSION or method not in methods:
        reason = "no acceptable authentication" if method == NO_ACCEPTABLE_METHOD else "not a SOCKS5 proxy"
        raise ProxyFailed(f"the proxy {proxy} does not serve us: {reason}")
    if method == USERNAME_PASSWORD:
        assert proxy.username is not None, "offered only with a user name"
        name, password = proxy.username.encode(), (proxy.password or "").encode()
        await stream.write(bytes((PASSWORD_VERSION, len(name))) + name + bytes((len(password),)) + password)
        _, status = await stream.read_exactly(2)
        if status:
            raise ProxyFailed(f"the proxy {proxy} does not serve us: it refuses the user name or password")


async def read_reply(stream: "ProxyStream") -> tuple[int, tuple[int, bytes, int]]:
    """Read the answer to a request: its code, and ATYP, address and port of the success (else zeros; they may not come).

    Raises ValueError for what is no reply, IncompleteReadError, OSError.
    """
    reply = b""
    while len(reply) < _HEAD:
        more = await stream.read_some(_HEAD - len(reply))
        if not more:
            raise IncompleteReadError("the proxy closed the connection")
        reply += more
        if reply[0] != VERSION:
            raise ValueError("not a SOCKS5 proxy")
        if len(reply) > 1 and reply[1] != Reply.SUCCEEDED:
            return reply[1], (0, b"", 0)
    kind, first = reply[3], reply[4]
    reply += await stream.read_exactly(5 if kind == IPV4 else first + 2 if kind == DOMAIN else 17)
    bound = parse_address(reply, 3)
    assert bound is not None, "its length was known"
    return Reply.SUCCEEDED, bound[:3]


def reply_name(code: int) -> str:
    """Return what a code of a reply means, in words."""
    try:
        return Reply(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"

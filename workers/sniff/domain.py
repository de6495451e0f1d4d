"""Host names as clients write them: in SNI (RFC 6066, 3) and in Host (RFC 9112, 3.2)."""

import re

__all__ = ["domain_name", "domain_of_authority"]

DOMAIN_MAX = 253  # characters without the trailing dot (RFC 1035, 2.3.4: 255 bytes on the wire)

# Underscores are no letters of host names (RFC 952), but names with them are resolved and served.
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
# A name that ends in a number is taken for an IPv4 address by resolvers and browsers (URL Standard, 3.5).
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def domain_name(raw: bytes) -> str | None:
    """Return the DNS name in `raw` in lower case without trailing dot; None if it is an address or no name at all."""
    if not raw.isascii():
        return None
    name = raw.decode("ascii").lower().removesuffix(".")
    if len(name) > DOMAIN_MAX or not _NAME.fullmatch(name) or _ENDS_IN_NUMBER.fullmatch(name):
        return None
    return name


def domain_of_authority(authority: bytes) -> str | None:
    """Return the DNS name in [user@]host[:port] (RFC 3986, 3.2); None if the host is an address."""
    host = authority.rpartition(b"@")[2]
    return domain_name(host.partition(b":")[0])  # "[" of an IPv6 literal is in no name

"""Addresses, names and regular expressions in a configuration: read strictly, with a word on what to write instead."""

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any

import re2

from engine.config.fields import Read
from shared.rules.regex import compile_regex

__all__ = [
    "Credential",
    "DomainName",
    "HostName",
    "InterfaceAddress",
    "InterfaceName",
    "IpCidr",
    "Keyword",
    "OneAddress",
    "Prefix",
    "Regex",
    "is_address",
    "looks_masked",
]

_PLACEHOLDER = re.compile(r"[<>*]|(?i:\bx{1,3}\b|your|example_ip|填|服务器|代理)")
MASKED = (
    "{0!r} is a placeholder, not an address: write the real one, such as 203.0.113.7/32. If it stands for the server that "
    "a proxy on this machine connects to, delete the rule: the engine lets that proxy's own connections out by itself"
)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is a string in quotation marks")
    return value


def looks_masked(text: str) -> bool:
    """Whether an address was made unreadable (`3.xxx.xx.82`) or is still to be filled in (`<your server ip>`)."""
    return _PLACEHOLDER.search(text.replace(".", " ").replace("/", " ").replace("_", " ")) is not None


def _ip_cidr(value: Any) -> str:
    text = _text(value, "an address")
    bare, slash, bits = text.partition("/")
    bare = bare.partition("%")[0]  # sing-box takes a zone, and compares without it
    try:
        return (
            str(ip_network(f"{bare}{slash}{bits}", strict=False)) if slash and bits.isdecimal() else _bare(bare, slash)
        )
    except ValueError:
        raise ValueError(_why_no_prefix(text)) from None


def _bare(text: str, slash: str) -> str:
    if slash:
        raise ValueError("no number of bits")
    return str(ip_address(text))


def _why_no_prefix(text: str) -> str:
    if looks_masked(text):
        return MASKED.format(text)
    if re.fullmatch(r"[\d.]+-[\d.]+|[\da-fA-F:]+-[\da-fA-F:]+", text):
        return f"{text!r} is a range of addresses: write the prefixes it consists of, as in 10.0.0.0/8"
    if re.fullmatch(r"[\w.-]*[a-zA-Z][\w.-]*", text) and ":" not in text:
        return f"{text!r} is a name, not an address: names stand under domain or domain_suffix"
    return f"{text!r} is neither an address nor a prefix: write one as in 10.0.0.0/8, 203.0.113.7 or 2001:db8::/32"


def _prefix(value: Any) -> str:
    text = _text(value, "a prefix")
    if "/" not in text:
        try:
            address = ip_address(text)
        except ValueError:
            raise ValueError(_why_no_prefix(text)) from None
        raise ValueError(f"{text!r} lacks the number of bits: write {address}/{address.max_prefixlen}, or fewer bits")
    return _ip_cidr(text)


def _interface_address(value: Any) -> str:
    text = _text(value, "an address with a number of bits")
    _prefix(text)
    return str(ip_interface(text))


def _one_address(value: Any) -> str:
    text = _text(value, "an address")
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(MASKED.format(text) if looks_masked(text) else f"{text!r} is no IP address") from None


def _host_name(value: Any) -> str:
    text = _text(value, "a server")
    if not text:
        raise ValueError("the server is empty: write its name or address")
    if looks_masked(text) and not is_address(text):
        raise ValueError(f"{text!r} is a placeholder: write the real name or address of the server")
    if ":" in text and not is_address(text.partition("%")[0]):
        raise ValueError(
            f"{text!r} is no name or address of a server: the port stands in server_port, a scheme nowhere"
        )
    if re.search(r"[\s/@]", text) or len(text) > 253:
        raise ValueError(f"{text!r} is no name or address of a server")
    if re.fullmatch(r"[\d.]+", text) and not is_address(text):
        raise ValueError(f"{text!r} is no IPv4 address: it consists of four numbers from 0 to 255")
    return text


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _domain_name(value: Any) -> str:
    text = _text(value, "a name")
    if not text.strip("."):
        raise ValueError("the name is empty")
    if re.search(r"[\s/:]", text) and not is_address(text):
        raise ValueError(f"{text!r} is no domain name: write it without scheme, port or path")
    if "*" in text:
        bare = text.removeprefix("*.")
        hint = f': write ".{bare}" under domain_suffix' if "*" not in bare else ": use domain_regex"
        raise ValueError(f"{text!r} has a wildcard, which sing-box does not know{hint}")
    return _ascii(text.lower().rstrip("."))


def _ascii(text: str) -> str:
    """Return an internationalised name as it stands in packets (RFC 3490)."""
    if text.isascii():
        return text
    leading = "." if text.startswith(".") else ""
    try:
        return leading + text.lstrip(".").encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"{text!r} is no domain name") from None


def _keyword(value: Any) -> str:
    text = _text(value, "a part of a name")
    if not text:
        raise ValueError("the empty text is part of every name: write the part that is meant, or delete it")
    return text.lower()


def _regex(value: Any) -> str:
    text = _text(value, "a regular expression")
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)  # type: ignore[no-untyped-call]
    except re2.error as error:
        hint = ""
        if re.search(r"\(\?<?[=!]", text):
            hint = "; RE2, which sing-box uses, has no look-ahead and no look-behind"
        elif re.search(r"\\[1-9]", text):
            hint = "; RE2, which sing-box uses, has no back-references"
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{text!r} is no regular expression: {reason}{hint}") from None
    compile_regex(text)  # what the workers will do with it
    return text


INTERFACE_NAME_MAX = 15  # bytes, IFNAMSIZ - 1 (include/uapi/linux/if.h)


def _interface_name(value: Any) -> str:
    text = _text(value, "the name of an interface")
    if not text or len(text.encode()) > INTERFACE_NAME_MAX or re.search(r"[\s/:]", text) or text in (".", ".."):
        raise ValueError(
            f"{text!r} is no name of an interface: at most {INTERFACE_NAME_MAX} bytes, without blank, slash or colon"
        )
    return text


_CIDR_SCHEMA = {"type": "string", "examples": ["10.0.0.0/8", "203.0.113.7", "2001:db8::/32"]}
IpCidr = Annotated[str, Read(_ip_cidr, _CIDR_SCHEMA)]
Prefix = Annotated[str, Read(_prefix, {"type": "string", "pattern": "/[0-9]+$", "examples": ["10.0.0.0/8"]})]
InterfaceAddress = Annotated[
    str, Read(_interface_address, {"type": "string", "pattern": "/[0-9]+$", "examples": ["198.18.0.1/30"]})
]
OneAddress = Annotated[str, Read(_one_address, {"type": "string", "examples": ["203.0.113.7", "2001:db8::1"]})]
HostName = Annotated[str, Read(_host_name, {"type": "string", "minLength": 1})]
DomainName = Annotated[str, Read(_domain_name, {"type": "string", "examples": ["example.com"]})]
Keyword = Annotated[str, Read(_keyword, {"type": "string", "minLength": 1})]
Regex = Annotated[str, Read(_regex, {"type": "string", "format": "regex"})]
InterfaceName = Annotated[
    str, Read(_interface_name, {"type": "string", "minLength": 1, "maxLength": INTERFACE_NAME_MAX})
]

CREDENTIAL_MAX = 255  # bytes, RFC 1929 (2)


def _credential(value: Any) -> str:
    text = _text(value, "a user name or password")
    if len(text.encode()) > CREDENTIAL_MAX:
        raise ValueError(f"a user name or password has at most {CREDENTIAL_MAX} bytes (RFC 1929)")
    return text


Credential = Annotated[str, Read(_credential, {"type": "string"})]

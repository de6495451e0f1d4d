"""Kinds of values that stand in a configuration: how each is read, and how the JSON schema describes it.

A reader takes a JSON value and returns the value meant, or raises ValueError with one sentence that says what to write
instead. It is attached to the type by Annotated, where engine/config/decode.py and engine/config/schema.py find it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

__all__ = [
    "FLAT",
    "LISTABLE",
    "Duration",
    "Fwmark",
    "Hidden",
    "Ignored",
    "Listable",
    "Never",
    "Port",
    "PortRange",
    "QueryType",
    "Read",
    "Required",
    "SecondsOrDuration",
    "Shorthand",
    "Strategy",
    "Uid",
    "UidRange",
    "Unsupported",
    "Variants",
    "duration",
    "integer",
]

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """How a value is read from its JSON form."""

    read: Callable[[Any], Any]
    schema: dict[str, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Unsupported:
    """A key of sing-box that this engine does not have: an error, unless its value switches it off."""

    sentence: str


@dataclass(frozen=True, eq=False, slots=True)
class Ignored:
    """A key of sing-box that makes no difference here: a warning."""

    sentence: str


@dataclass(frozen=True, eq=False, slots=True)
class Never:
    """A condition that holds for no flow here: a warning, and the rule does not match."""

    sentence: str


@dataclass(frozen=True, eq=False, slots=True)
class Hidden:
    """A key that is read without a word, such as `$schema`."""


@dataclass(frozen=True, eq=False, slots=True)
class Required:
    """A key that must be there; the sentence says what to write."""

    sentence: str


@dataclass(frozen=True, eq=False, slots=True)
class Variants:
    """Objects of several kinds, told apart by one key."""

    key: str
    structs: dict[str, type]
    refused: dict[str, str] = field(default_factory=dict)
    """Kinds that sing-box has and this engine has not: the way out."""
    default: str | None = None
    """Kind of an object without the key."""
    what: str = ""
    """In a message: an inbound, an outbound."""


FLAT = object()
"""Marks a Struct whose keys stand in the object of the Struct that holds it."""


@dataclass(frozen=True, eq=False, slots=True)
class Shorthand:
    """A Struct that may stand as the value of one of its keys: `"dns"` for `{"server": "dns"}`."""

    key: str
    kind: type


LISTABLE = object()
"""Marks a tuple that may stand as a list or as one item."""
Listable = Annotated[tuple[T, ...], LISTABLE]


# Time

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([\d.]+)([a-zµμ]+)")
_DURATION_PATTERN = r"^[+-]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h|d))+$"


def duration(value: Any) -> float:
    """Return seconds: Go's durations (`1h30m`, `300ms`) and `d` for days."""
    if not isinstance(value, str):
        raise ValueError(f'a duration is a string with a unit, as in "{_number(value)}s"')
    if value.strip("+-") == "0":
        return 0.0
    if not _DURATION.fullmatch(value):
        hint = f'write "{value}s"' if re.fullmatch(r"\d+", value) else 'write one as in "300ms", "5m" or "1h30m"'
        raise ValueError(f"{value!r} is not a duration: {hint}")
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _DURATION_PART.findall(value))
    return -seconds if value.startswith("-") else seconds


def _positive_duration(value: Any) -> float:
    seconds = duration(value)
    if seconds < 0:
        raise ValueError(f"{value!r} is a negative time")
    return seconds


def _seconds_or_duration(value: Any) -> float:
    return (
        float(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else _positive_duration(value)
    )


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else "5"


_DURATION_SCHEMA = {"type": "string", "pattern": _DURATION_PATTERN, "examples": ["300ms", "5m", "1h30m", "1d"]}
Duration = Annotated[float, Read(_positive_duration, _DURATION_SCHEMA)]
SecondsOrDuration = Annotated[
    float, Read(_seconds_or_duration, {"anyOf": [_DURATION_SCHEMA, {"type": "integer", "minimum": 0}]})
]


# Numbers


def integer(value: Any, low: int, high: int, what: str) -> int:
    """Return a whole number of JSON: 1080, 1080.0 and 1.08e3 are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,10}", value.strip()):
        raise ValueError(f"{what} is a number, without quotation marks: {int(value)}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} is a number from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{value} is out of range: {what} is a number from {low} to {high}")
    return value


def _range_of_numbers(low: int, high: int, what: str) -> Read:
    return Read(lambda value: integer(value, low, high, what), {"type": "integer", "minimum": low, "maximum": high})


Port = Annotated[int, _range_of_numbers(0, 65535, "a port")]
Uid = Annotated[int, _range_of_numbers(0, 2**32 - 1, "a user id")]


def _range(value: Any, what: str, example: str, high: int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d*):(\d*)", value) if isinstance(value, str) else None
    if match is None or not (match[1] or match[2]):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"\d+-\d+", value):
            hint = f': write "{value.replace("-", ":")}"'
        elif re.fullmatch(r"\d+", str(value)):
            hint = f': write "{value}:{value}", or use "{what.removesuffix("_range")}"'
        raise ValueError(f"a range is two numbers with a colon, as in {example}{hint}")
    first, last = int(match[1] or 0), int(match[2] or high)
    if last > high or first > last:
        raise ValueError(f"{value!r} is no range: the first number must not be above the second, nor that above {high}")
    return first, last


PortRange = Annotated[
    tuple[int, int],
    Read(
        lambda value: _range(value, "port_range", '"1000:2000", ":3000" or "4000:"', 65535),
        {"type": "string", "pattern": "^[0-9]*:[0-9]*$", "examples": ["1000:2000", ":3000", "4000:"]},
    ),
]
UidRange = Annotated[
    tuple[int, int],
    Read(
        lambda value: _range(value, "uid_range", '"1000:99999"', 2**32 - 1),
        {"type": "string", "pattern": "^[0-9]*:[0-9]*$", "examples": ["1000:99999"]},
    ),
]


def _fwmark(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise ValueError(f'{value!r} is no mark: write a number or "0xff"') from None
    return integer(value, 0, 2**32 - 1, "a mark")


Fwmark = Annotated[
    int,
    Read(
        _fwmark, {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(0[xX])?[0-9a-fA-F]+$"}]}
    ),
]


Strategy = Literal["prefer_ipv4", "prefer_ipv6", "ipv4_only", "ipv6_only"]

_QUERY_TYPES = {
    "A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "HINFO": 13, "MX": 15, "TXT": 16, "RP": 17, "AAAA": 28, "LOC": 29,
    "SRV": 33, "NAPTR": 35, "DNAME": 39, "OPT": 41, "DS": 43, "SSHFP": 44, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48,
    "NSEC3": 50, "TLSA": 52, "SVCB": 64, "HTTPS": 65, "SPF": 99, "ANY": 255, "URI": 256, "CAA": 257,
}  # fmt: skip
"""IANA, DNS resource record types."""


def _query_type(value: Any) -> int:
    if isinstance(value, str):
        number = _QUERY_TYPES.get(value.upper())
        if number is None:
            raise ValueError(
                f"{value!r} is no DNS record type known here: write one such as A, AAAA, HTTPS, or its number"
            )
        return number
    return integer(value, 0, 65535, "a DNS record type")


QueryType = Annotated[
    int,
    Read(_query_type, {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 65535}]}),
]

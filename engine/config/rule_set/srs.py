"""The binary form of rule-sets (.srs): "SRS", a version byte, then one zlib stream of rules.

Layout: sing-box, common/srs/binary.go and ip_set.go; sing, common/domain/set.go. Numbers are big-endian or LEB128.
"""

import struct
import zlib
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Literal

from engine.config.build.conditions import NEVER
from shared.config import Logical, Match

__all__ = ["RuleSetError", "decode_srs"]

VERSION_MAX = 4
SIZE_MAX = 256 * 1024 * 1024
"""Bytes of rules after inflation. The largest published set, all of geosite, has about 40 MB."""
DEPTH_MAX = 50
"""Logical rules within one another."""

(
    _QUERY_TYPE, _NETWORK, _DOMAIN, _DOMAIN_KEYWORD, _DOMAIN_REGEX, _SOURCE_IP_CIDR, _IP_CIDR, _SOURCE_PORT,
    _SOURCE_PORT_RANGE, _PORT, _PORT_RANGE, _PROCESS_NAME, _PROCESS_PATH, _PACKAGE_NAME, _WIFI_SSID, _WIFI_BSSID,
    _ADGUARD_DOMAIN, _PROCESS_PATH_REGEX, _NETWORK_TYPE, _NETWORK_IS_EXPENSIVE, _NETWORK_IS_CONSTRAINED,
    _NETWORK_INTERFACE_ADDRESS, _DEFAULT_INTERFACE_ADDRESS,
) = range(23)  # fmt: skip
_FINAL = 0xFF
_STRINGS = {
    _NETWORK: "network", _DOMAIN_KEYWORD: "domain_keyword", _DOMAIN_REGEX: "domain_regex", _PROCESS_NAME: "process_name",
    _PROCESS_PATH: "process_path", _PROCESS_PATH_REGEX: "process_path_regex",
}  # fmt: skip
_NUMBERS = {_QUERY_TYPE: "query_type", _SOURCE_PORT: "source_port", _PORT: "port"}
_RANGES = {_SOURCE_PORT_RANGE: "source_port_range", _PORT_RANGE: "port_range"}
_ADDRESSES = {_SOURCE_IP_CIDR: "source_ip_cidr", _IP_CIDR: "ip_cidr"}
_UNKNOWABLE = {_PACKAGE_NAME, _WIFI_SSID, _WIFI_BSSID}
"""Lists of strings that hold for no flow here: only phones know them."""

# Marks at the end of a reversed name (sing, common/domain/matcher.go).
_PREFIX_LABEL = "\r"
"""The name stands for those that end with it."""
_ROOT_LABEL = "\n"
"""The name stands for itself and those below."""


class RuleSetError(Exception):
    """The file is no rule-set that can be read; the text is one sentence."""


def decode_srs(data: bytes) -> tuple[Match | Logical, ...]:
    """Return the rules of a .srs file. Raises RuleSetError, and nothing else."""
    if data[:3] != b"SRS" or len(data) < 4:
        raise RuleSetError("the file does not begin with SRS: it is no binary rule-set")
    if not 1 <= data[3] <= VERSION_MAX:
        raise RuleSetError(f"version {data[3]} of binary rule-sets is not known here (1 to {VERSION_MAX} are)")
    try:
        reader = _Reader(_inflate(data[4:]))
        rules = tuple(_rule(reader, 0) for _ in range(reader.count()))
    except (zlib.error, struct.error, IndexError) as error:
        raise RuleSetError(f"the file is damaged ({error})") from None
    except UnicodeDecodeError:
        raise RuleSetError("the file is damaged (a text is not UTF-8)") from None
    return rules


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    plain = inflater.decompress(data, SIZE_MAX)
    if inflater.unconsumed_tail:
        raise RuleSetError(f"the file has more than {SIZE_MAX // 2**20} MiB of rules")
    if not inflater.eof:
        raise RuleSetError("the file is damaged (it ends too early)")
    return plain


class _Reader:
    """Takes one thing after the other out of the inflated bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self.data):
            raise IndexError("it ends too early")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def count(self) -> int:
        """Read a LEB128 number. Whatever it counts takes at least a byte each, so that it cannot ask for more than is there."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise IndexError("a number has no end")
        if value > len(self.data):
            raise IndexError("it ends too early")
        return value

    def words(self) -> tuple[int, ...]:
        count = self.count()
        return struct.unpack(f">{count}Q", self.take(8 * count))

    def numbers(self) -> tuple[int, ...]:
        count = self.count()
        return struct.unpack(f">{count}H", self.take(2 * count))

    def strings(self) -> tuple[str, ...]:
        return tuple(self.take(self.count()).decode() for _ in range(self.count()))


def _rule(reader: _Reader, depth: int) -> Match | Logical:
    kind = reader.byte()
    if kind == 0:
        return _default_rule(reader)
    if kind != 1:
        raise RuleSetError(f"the file has a rule of unknown type {kind}")
    if depth == DEPTH_MAX:
        raise RuleSetError(f"more than {DEPTH_MAX} logical rules stand within one another")
    mode: Literal["and", "or"] = "or" if reader.byte() else "and"
    rules = tuple(_rule(reader, depth + 1) for _ in range(reader.count()))
    return Logical(mode=mode, rules=rules, invert=bool(reader.byte()))


def _default_rule(reader: _Reader) -> Match | Logical:
    fields: dict[str, Any] = {}
    holds_never = False
    while (item := reader.byte()) != _FINAL:
        if item == _DOMAIN:
            fields["domain"], fields["domain_suffix"] = _domains(reader)
        elif item in _STRINGS:
            fields[_STRINGS[item]] = reader.strings()
        elif item in _NUMBERS:
            fields[_NUMBERS[item]] = reader.numbers()
        elif item in _RANGES:
            fields[_RANGES[item]] = tuple(map(_range, reader.strings()))
        elif item in _ADDRESSES:
            fields[_ADDRESSES[item]] = tuple(_addresses(reader))
        elif item in _UNKNOWABLE:
            holds_never = bool(reader.strings())
        elif item == _NETWORK_TYPE:
            holds_never = bool(reader.take(reader.count()))
        elif item in (_NETWORK_IS_EXPENSIVE, _NETWORK_IS_CONSTRAINED):
            holds_never = True
        elif item == _ADGUARD_DOMAIN:
            raise RuleSetError("the file has AdGuard rules, which are not supported: use one with domain_suffix")
        else:
            raise RuleSetError(f"the file has a condition of unknown type {item}")
    invert = bool(reader.byte())
    if holds_never:
        return Logical(mode="or", rules=(), invert=True) if invert else NEVER
    return Match(**fields, invert=invert)


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not (first + last).isdecimal():
        raise RuleSetError(f"the file has a range of ports that is none: {text!r}")
    return int(first or 0), int(last or 65535)


def _addresses(reader: _Reader) -> Iterator[str]:
    """Yield prefixes, and `first-last` where a range is none."""
    if reader.byte() != 1:
        raise RuleSetError("the file has a list of addresses of an unknown version")
    (count,) = struct.unpack(">Q", reader.take(8))
    if count > len(reader.data):
        raise IndexError("it ends too early")
    for _ in range(count):
        first, last = reader.take(reader.count()), reader.take(reader.count())
        if len(first) != len(last) or len(first) not in (4, 16) or first > last:
            raise RuleSetError("the file has a range of addresses that is none")
        free = int.from_bytes(first) ^ int.from_bytes(last)  # bits that differ: of a prefix all of the lowest ones
        low, bits = ip_address(first), free.bit_length()
        if free == (1 << bits) - 1 and not int(low) & free:
            yield f"{low}/{low.max_prefixlen - bits}"
        else:
            yield f"{low}-{ip_address(last)}"


def _domains(reader: _Reader) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names and the suffixes of a succinct trie, whose keys are names read backwards."""
    reader.byte()  # version; sing-box does not look at it either
    leaves, bitmap, labels = reader.words(), reader.words(), reader.take(reader.count())
    names: set[str] = set()
    suffixes: set[str] = set()
    for key in _keys(_bits(leaves), _bits(bitmap), labels):
        name = key.decode()[::-1]
        if name[:1] == _PREFIX_LABEL or name[:1] == _ROOT_LABEL:
            suffixes.add(name[1:])
        elif name:
            names.add(name)
    # Version 1 has two entries for a suffix without dot: the name itself, and what is below.
    whole = {suffix[1:] for suffix in suffixes if suffix.startswith(".") and suffix[1:] in names}
    suffixes |= whole
    suffixes -= {f".{suffix}" for suffix in suffixes}
    return tuple(sorted(names - whole)), tuple(sorted(suffixes))


def _bits(words: tuple[int, ...]) -> str:
    """Return the bits of a bitmap as text, lowest first."""
    return "".join(f"{word:064b}"[::-1] for word in words)


def _keys(leaves: str, bitmap: str, labels: bytes) -> Iterator[bytes]:
    """Yield the keys of the trie. Its nodes are numbered breadth first; in the bitmap each node has a 0 for every child,
    then a 1, so that what stands between two ones is the number of its children."""
    prefixes = [b""]
    born = 0
    for node, children in enumerate(bitmap.split("1")[:-1]):
        prefix = prefixes[node]
        prefixes.extend(prefix + labels[label : label + 1] for label in range(born, born + len(children)))
        born += len(children)
        if node < len(leaves) and leaves[node] == "1":
            yield prefix

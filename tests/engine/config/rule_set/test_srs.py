"""engine/config/rule_set/srs.py, against files that sing-box itself has compiled."""

import json
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.build.conditions import NEVER
from engine.config.rule_set.srs import RuleSetError, decode_srs
from shared.config import Logical, Match
from tests.support.sing_box import sing_box


def compiled(rules: list[dict[str, Any]], directory: Path, version: int = 3) -> bytes:
    """Return what `sing-box rule-set compile` makes of rules."""
    source, binary = directory / "set.json", directory / "set.srs"
    source.write_text(json.dumps({"version": version, "rules": rules}))
    subprocess.run([sing_box(), "rule-set", "compile", str(source), "-o", str(binary)], check=True, capture_output=True)
    return binary.read_bytes()


RULE = {
    "query_type": ["A", 65], "network": ["tcp", "udp"], "domain": ["one.example"], "domain_keyword": ["ads"],
    "domain_suffix": ["two.example", ".three.example", "four.example", ".four.example"], "domain_regex": ["^x"],
    "source_ip_cidr": ["192.168.0.0/17"], "ip_cidr": ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"], "port": [80],
    "source_port": [7], "port_range": ["1000:2000", ":5"], "source_port_range": ["9:"], "process_name": ["curl"],
    "process_path": ["/bin/a"], "process_path_regex": ["^/b"],
}  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_every_condition_that_a_binary_rule_set_can_have(tmp_path: Path, version: int) -> None:
    inner = [{"domain": ["q.example"]}, {"ip_cidr": ["198.51.100.7"], "invert": True}]
    logical = {"type": "logical", "mode": "or", "rules": inner, "invert": True}
    first, second = decode_srs(compiled([RULE, logical], tmp_path, version))
    assert first == Match(
        query_type=(1, 65), network=("tcp", "udp"), domain=("one.example",), domain_keyword=("ads",),
        domain_suffix=(".three.example", "four.example", "two.example"), domain_regex=("^x",),
        source_ip_cidr=("192.168.0.0/17",), ip_cidr=("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"), port=(80,),
        source_port=(7,), port_range=((1000, 2000), (0, 5)), source_port_range=((9, 65535),), process_name=("curl",),
        process_path=("/bin/a",), process_path_regex=("^/b",),
    )  # fmt: skip
    parts = (Match(domain=("q.example",)), Match(ip_cidr=("198.51.100.7/32",), invert=True))
    assert second == Logical(mode="or", rules=parts, invert=True)


def test_neighbouring_prefixes_are_one_range(tmp_path: Path) -> None:
    rules = decode_srs(compiled([{"ip_cidr": ["10.0.0.0/8", "11.0.0.0/9", "0.0.0.0/1"]}], tmp_path))
    assert rules == (Match(ip_cidr=("0.0.0.0/1",)),)
    rules = decode_srs(compiled([{"ip_cidr": ["10.0.0.1", "10.0.0.2"]}], tmp_path))
    assert rules == (Match(ip_cidr=("10.0.0.1-10.0.0.2",)),)


def test_conditions_that_only_phones_know_never_hold(tmp_path: Path) -> None:
    rules = [{"package_name": ["a"]}, {"wifi_ssid": ["b"], "invert": True}, {"network_type": ["wifi"], "domain": ["x"]}]
    assert decode_srs(compiled(rules, tmp_path)) == (NEVER, Logical(mode="or", rules=(), invert=True), NEVER)


def test_adguard_rules_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("||ads.example^\n")
    command = [
        sing_box(),
        "rule-set",
        "convert",
        "--type",
        "adguard",
        str(tmp_path / "list.txt"),
        "-o",
        str(tmp_path / "a.srs"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(RuleSetError, match="AdGuard"):
        decode_srs((tmp_path / "a.srs").read_bytes())


labels = st.text(alphabet="abcz09-", min_size=1, max_size=6)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(names, min_size=1, max_size=40), st.sets(names, max_size=40), st.sampled_from([1, 2, 3]))
def test_every_name_comes_back(tmp_path: Path, domains: set[str], suffixes: set[str], version: int) -> None:
    both = [suffix if index % 2 else f".{suffix}" for index, suffix in enumerate(sorted(suffixes))]
    (rule,) = decode_srs(compiled([{"domain": sorted(domains), "domain_suffix": both}], tmp_path, version))
    assert isinstance(rule, Match)
    matched = set(rule.domain) | {suffix for suffix in rule.domain_suffix if not suffix.startswith(".")}
    assert domains <= matched and {suffix for suffix in both if suffix.startswith(".")} - set(rule.domain_suffix) <= {
        f".{suffix}" for suffix in rule.domain_suffix
    }
    assert matched <= domains | set(both)


def test_a_hundred_thousand_names(tmp_path: Path) -> None:
    names = [f"host{number}.zone{number % 997}.example" for number in range(100_000)]
    (rule,) = decode_srs(compiled([{"domain_suffix": names}], tmp_path))
    assert isinstance(rule, Match) and set(rule.domain_suffix) == set(names)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "does not begin with SRS"),
        (b"PK\x03\x04", "does not begin with SRS"),
        (b"SRS\x09", "version 9"),
        (b"SRS\x03", "damaged"),
        (b"SRS\x03nonsense", "damaged"),
        (b"SRS\x03" + zlib.compress(b"\xff\xff\x03"), "damaged"),
        (b"SRS\x03" + zlib.compress(b"\x01\x05"), "unknown type 5"),
        (b"SRS\x03" + zlib.compress(b"\x01\x00\x77"), "unknown type 119"),
        (b"SRS\x03" + zlib.compress(b"\x01" + b"\x01\x00\x01" * 60), "logical rules"),
        (b"SRS\x03" + zlib.compress(b"\x01\x00\x03\x01\x01\xff"), "not UTF-8"),
    ],
)
def test_what_is_no_rule_set_is_refused_with_a_sentence(data: bytes, part: str) -> None:
    with pytest.raises(RuleSetError, match=part):
        decode_srs(data)


@given(st.data())
def test_damaged_files_raise_the_documented_exception_or_are_read(data: st.DataObject) -> None:
    plain = bytearray(zlib.decompress(SAMPLE[4:]))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(plain)))
    try:
        decode_srs(b"SRS\x03" + zlib.compress(bytes(plain[:cut])))
    except RuleSetError:
        pass


SAMPLE = b"SRS\x03" + zlib.compress(
    b"\x01\x00\x02\x00\x01" + (1 << 3).to_bytes(8, "big") + b"\x01" + 0b1101010.to_bytes(8, "big") + b"\x03\ncb"
    b"\x06\x01" + (1).to_bytes(8, "big") + b"\x04\x0a\x00\x00\x00\x04\x0a\xff\xff\xff\x09\x01\x00\x50\xff\x00"
)


def test_the_sample_is_sound() -> None:
    assert decode_srs(SAMPLE)

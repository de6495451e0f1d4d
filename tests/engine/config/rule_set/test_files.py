"""engine/config/rule_set/files.py: inline, local and remote rule-sets."""

import json
from typing import Any

import pytest

from engine.config.options.route import RemoteRuleSetOptions
from engine.config.rule_set.files import remote_path
from shared.config import Match
from tests.engine.config.conftest import Load
from tests.engine.config.rule_set.test_srs import SAMPLE

SOURCE = json.dumps({"version": 3, "rules": [{"domain_suffix": "example.org", "network": "tcp,udp"}]}).encode()


def rules_of(load: Load, option: dict[str, Any], files: dict[str, bytes]) -> Any:
    config = load(route={"rule_set": [{"tag": "s", **option}]}, files=files)
    (rule_set,) = config.policy.route.rule_sets
    assert set(config.files) == {"config.json", *files}
    return rule_set.rules


def test_inline(load: Load) -> None:
    rules = [{"domain": "a"}, {"type": "logical", "mode": "and", "rules": [{"port": 1}, {"query_type": "A"}]}]
    first, second = rules_of(load, {"type": "inline", "rules": rules}, {})
    assert first == Match(domain=("a",))
    assert second.rules == (Match(port=(1,)), Match(query_type=(1,)))


@pytest.mark.parametrize("named", [None, "source"])
def test_source_form_beside_the_configuration(load: Load, named: str | None) -> None:
    option = {"type": "local", "path": "sets/a.json", "format": named}
    assert rules_of(load, option, {"sets/a.json": SOURCE}) == (
        Match(domain_suffix=("example.org",), network=("tcp", "udp")),
    )


def test_binary_form(load: Load) -> None:
    (rule,) = rules_of(load, {"type": "local", "path": "/sets/a.srs"}, {"/sets/a.srs": SAMPLE})
    assert rule.port == (80,)


def test_remote_set_is_read_where_it_was_put(load: Load) -> None:
    option = {"type": "remote", "tag": "geosite-x", "url": "https://sets.example/x.srs?raw=1"}
    (rule,) = rules_of(load, option, {"/var/lib/tunloom/rule-sets/geosite-x.srs": SAMPLE})
    assert rule.ip_cidr == ("10.0.0.0/8",)


def test_remote_set_that_is_not_there_says_how_to_fetch_it(errors: Any) -> None:
    rule_set = [{"type": "remote", "tag": "x", "url": "https://sets.example/x.srs", "format": "binary"}]
    (line,) = errors(route={"rule_set": rule_set}, engine={"rule_set_dir": "/sets"})
    assert "/sets/x.srs is not there" in line and "`engine fetch -c FILE`" in line


def test_tag_of_a_remote_set_leads_nowhere_else() -> None:
    option = RemoteRuleSetOptions(tag="../../etc/passwd", url="https://a.example/x.json")
    assert str(remote_path(option, "/sets")) == "/sets/.._.._etc_passwd.json"


@pytest.mark.parametrize(
    ("data", "place", "part"),
    [
        (b'{"version": 3,\n "rules": [{"domain_sufix": "x"}]}', "/a.json:2:13", 'did you mean "domain_suffix"?'),
        (b'{"version": 3, "rules": [{"domain": "x",,}]}', "/a.json:1:41", "a comma too many"),
        (b'{"version": 9, "rules": []}', "/a.json:1:13", "9 is not known here"),
        (b'{"rules": []}', "/a.json:1:1", "version is missing"),
        (b"[]", "/a.json:1:1", "a rule-set is an object"),
        (b'{"version": 1, "rules": [{"inbound": "x"}]}', "/a.json:1:27", "does not belong into a rule-set"),
    ],
)
def test_errors_of_a_source_file_have_its_own_lines(errors: Any, data: bytes, place: str, part: str) -> None:
    (line,) = errors(route={"rule_set": [{"type": "local", "tag": "s", "path": "/a.json"}]}, files={"/a.json": data})
    assert line.startswith(f"{place}: ") and part in line


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ({"type": "local", "path": "/a.srs"}, "/a.srs cannot be read: No such file"),
        ({"type": "local", "path": "/a.txt"}, "format is missing"),
        ({"type": "local"}, "path is missing"),
        ({"type": "remote"}, "url is missing"),
        ({"type": "local", "path": "/bad.srs"}, "/bad.srs: the file does not begin with SRS"),
        ({"type": "url", "path": "x"}, "is no type of a rule-set; known: inline, local, remote"),
    ],
)
def test_what_is_wrong_with_a_rule_set_is_told(errors: Any, option: dict[str, Any], part: str) -> None:
    (line,) = errors(route={"rule_set": [{"tag": "s", **option}]}, files={"/bad.srs": b"x", "/a.txt": b""})
    assert part in line

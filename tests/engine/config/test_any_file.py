"""Whatever stands in a file, the loader takes it or refuses it with sentences; it never fails in another way."""

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.load import load_text
from engine.config.problems import ConfigError
from tests.engine.config.conftest import BASE, machine
from tests.engine.config.test_legacy import ONE_EIGHT, ONE_FOURTEEN
from tests.engine.config.test_load import EVERYTHING_WRONG
from tests.engine.config.test_route import MODERN

ARTICLE = (Path(__file__).parent / "article.json").read_text()
TREES: list[Any] = [
    ONE_EIGHT,
    ONE_FOURTEEN,
    {**BASE, **MODERN},
    {"engine": {"stack": {"send_buffer": 65536}, "metrics": "off"}},
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 5.5, 1e308, 10**30, "", "x", "tcp,udp", "0.0.0.0/0", "::/0", "1.2.3.4", "5s", "udp://[x",
    "\N{SNOWMAN}", "a.b", "\x00", ".", "*.a", "-", "proxy", "direct", [], [None], [[]], {}, {"": 1}, ["a", 1], {"type": "socks"},
    {"type": "logical"},
]  # fmt: skip
KEYS = st.sampled_from(
    ["log", "dns", "inbounds", "outbounds", "route", "experimental", "engine", "rules", "servers", "type", "tag", "rule_set",
     "action", "outbound", "server", "address", "domain", "ip_cidr", "network", "geoip", "clash_api", "tls", "detour", "mode",
     "invert", "final"]
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [found for key, value in inner for found in places(value, (*path, key))]


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    where = tree
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    return tree


def assert_taken_or_refused(text: str) -> None:
    try:
        load_text(text, machine=machine())
    except ConfigError as error:
        assert error.errors
        assert all(problem.place.line >= 1 and problem.sentence for problem in error.errors)


@settings(max_examples=300)
@given(st.data())
def test_odd_values(data: st.DataObject) -> None:
    tree = copy.deepcopy(data.draw(st.sampled_from(TREES)))
    for _ in range(data.draw(st.integers(1, 3))):
        tree = changed(tree, data.draw(st.sampled_from(places(tree))), copy.deepcopy(data.draw(st.sampled_from(ODD))))
    assert_taken_or_refused(json.dumps(tree))


@settings(max_examples=200)
@given(st.sampled_from([ARTICLE, EVERYTHING_WRONG, json.dumps(MODERN, indent=1)]), st.data())
def test_damaged_text(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    size = data.draw(st.integers(0, 20))
    assert_taken_or_refused(
        text[:at] + data.draw(st.sampled_from(["", '"', ",", "}", "]", "//", "\\", "0"])) + text[at + size :]
    )


@settings(max_examples=200)
@given(
    st.recursive(
        st.sampled_from(ODD), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    )
)
def test_trees_of_known_keys(tree: Any) -> None:
    assert_taken_or_refused(json.dumps(tree))

"""engine/config/dialect.py: what it takes, what it refuses, and that it knows where everything stands."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.config.dialect import Array, DialectError, Object, decode_text, parse, position, value_at
from engine.config.problems import Sources
from tests.support.sing_box import sing_box_accepts

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(plain, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_plain_json_is_read_as_json_loads_reads_it(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse(text) == json.loads(text)


@given(st.text(alphabet='{}[]",:\\/*#\n\r\t 0123456789.eE+-truefalsn\N{NO-BREAK SPACE}ü', max_size=60))
@example('{"a": "\\ud800"}')
@example('"\\')
@example("/*")
@example("/" * 30)
@example("[" * 1000)
@example("9" * 5000)
@example("1e400")
def test_garbage_raises_the_documented_exception_and_nothing_else(text: str) -> None:
    try:
        parse(text)
    except DialectError as error:
        assert 0 <= error.at <= len(text)
        assert str(error)


@given(plain, st.data())
def test_damaged_json_raises_the_documented_exception_or_is_read(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value, indent=1)
    cut = data.draw(st.integers(0, len(text)))
    inserted = data.draw(st.sampled_from(['"', ",", "}", "]", "{", "[", ":", "//", "/*", "#", "\\", "\x00", "é"]))
    try:
        parse(text[:cut] + inserted + text[cut:])
    except DialectError:
        pass


ACCEPTED = {
    "hash at the start": '# x\n{"log": {}}',
    "hashes": '## x ##\n{"log": {}} ## y',
    "hash at the end without newline": '{"log": {}} # end',
    "hash after a value": '{"log": {"level": "info" # why\n}}',
    "slashes": '{"log": {} // x\n}',
    "block": '{/* a\n * b **/"log": {}/**/}',
    "mark within a string": '{"log": {"output": "a//b#c/*d*/"}}',
    "lone CR ends a comment": '{"log": {} # x\r}',
    "CRLF and tabs": '{\r\n\t"log":\t{}\r\n}',
    "comma at the end of an object": '{"log": {"level": "info",},}',
    "comma, then a comment": '{"log": {"level": "info", # x\n}}',
    "comma at the end of a list": '{"inbounds": [{"type": "tun", "address": ["10.0.0.1/30",],},]}',
    "same key twice": '{"log": {"level": "debug"}, "log": {"level": "info"}}',
    "empty object": "{}",
    "null": '{"log": null}',
    "schema": '{"$schema": "https://example.com/s.json"}',
    "float as int": '{"inbounds": [{"type": "tun", "mtu": 1.5e3, "address": "10.0.0.1/30"}]}',
    "no UTF-8 in a comment": b'{"log": {} # \xff\xfe\n}',
    "escapes": '{"log": {"output": "\\u00e9\\n\\/\\ud83d\\ude00\\ud800"}}',
}
REFUSED = {
    "empty": "",
    "only a comment": "# x\n",
    "BOM": '\N{ZERO WIDTH NO-BREAK SPACE}{"log": {}}',
    "no-break space": '{"log":\N{NO-BREAK SPACE}{}}',
    "curly quotes": "{\N{LEFT DOUBLE QUOTATION MARK}log\N{RIGHT DOUBLE QUOTATION MARK}: {}}",
    "single quotes": "{'log': {}}",
    "no quotes": "{log: {}}",
    "semicolon": '{"log": {}; "dns": {}}',
    "dashes": '{"log": {} -- x\n}',
    "HTML comment": '{"log": {} <!-- x -->}',
    "comment without end": '{"log": {}} /* x',
    "two commas": '{"inbounds": [,,]}',
    "leading comma": '{,"log": {}}',
    "comma alone": '{"inbounds": [,]}',
    "missing comma": '{"log": {} "dns": {}}',
    "comma after the root": '{"log": {}},',
    "second document": '{"log": {}} {}',
    "missing colon": '{"log" {}}',
    "missing value": '{"log":}',
    "leading zero": '{"inbounds": [{"type": "tun", "mtu": 01500}]}',
    "plus": '{"inbounds": [{"type": "tun", "mtu": +1500}]}',
    "NaN": '{"inbounds": [{"type": "tun", "mtu": NaN}]}',
    "line break in a string": '{"log": {"level": "in\nfo"}}',
    "string without end": '{"log": {"level": "info}}',
    "bad escape": '{"log": {"output": "\\x41"}}',
    "brace missing": '{"log": {}',
    "wrong closing mark": '{"inbounds": [}]',
    "key is a number": '{1: {}}',
}  # fmt: skip


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(text: str | bytes) -> None:
    assert isinstance(parse(decode_text(as_bytes(text))), Object)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(DialectError):
        parse(text)


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_sing_box_accepts_the_same(text: str | bytes, tmp_path: Path) -> None:
    assert sing_box_accepts(as_bytes(text), tmp_path)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_sing_box_refuses_the_same(text: str, tmp_path: Path) -> None:
    assert not sing_box_accepts(text.encode(), tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        ("", 1, 1, "empty"),
        ("\n\n# only this\n", 4, 1, "only comments"),
        ('{\n  "log": {}\n  "dns": {}\n}', 3, 3, "a comma is missing before"),
        ("{\n  log: {}\n}", 2, 3, "quotation marks"),
        ("{\n  'log': {}\n}", 2, 3, "double quotation marks"),
        ('{"a": 1,, "b": 2}', 1, 9, "a comma too many"),
        ('{"a": 1}\n}', 2, 1, "after the end"),
        ('{"a": [1, 2}', 1, 12, "ends with ']'"),
        ('{"a": "x', 1, 7, "no end"),
        ('{"a" 1}', 1, 6, "':' is missing"),
        ('{"a": 1 /* b', 1, 9, "*/ is missing"),
        ('{"a": "\\q"}', 1, 8, "backslash"),
        ('{\n"a": [\n  1,\n', 4, 1, "ends too early"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}{}", 1, 1, "byte order mark"),
        ('{"a": 1;}', 1, 8, "semicolon"),
        ('{"ключ" "я": я}', 1, 9, "':' is missing"),
    ],
)
def test_error_says_where_and_what(text: str, line: int, column: int, part: str) -> None:
    sources = Sources()
    with pytest.raises(DialectError) as caught:
        parse(text, sources.add("f.json", text))
    assert sources.place(caught.value.at) == ("f.json", line, column)
    assert part in str(caught.value)


def test_a_key_that_stands_twice_counts_where_it_stands_last() -> None:
    tree = parse('{"a": 1, "b": 2, "a": 3}')
    assert list(tree.items()) == [("b", 2), ("a", 3)]
    assert position(tree, ("a",)) == 22
    assert position(tree, ("a",), of_key=True) == 17


def test_every_value_knows_where_it_stands() -> None:
    text = '{\n "route": {\n  "rules": [\n   {"port": [80, 443]}\n  ]\n }\n}'
    sources = Sources()
    sources.add("first.json", "{}\n")
    tree = parse(text, sources.add("second.json", text))

    def place(*path: str | int, of_key: bool = False) -> tuple[str, int, int]:
        return sources.place(position(tree, path, of_key=of_key))

    assert place() == ("second.json", 1, 1)
    assert place("route") == ("second.json", 2, 11)
    assert place("route", of_key=True) == ("second.json", 2, 2)
    assert place("route", "rules", 0, "port", 1) == ("second.json", 4, 18)
    assert place("route", "rules", 0, "nothing") == ("second.json", 4, 4)
    assert value_at(tree, ("route", "rules", 0, "port", 1)) == 443
    assert value_at(tree, ("route", "rules", 7)) is None


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Any:
    yield path, tree
    if isinstance(tree, Object):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, Array):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))


@given(plain)
def test_parsing_from_a_position_finds_the_value_again(value: Any) -> None:
    text = json.dumps(value, indent=1)
    tree = parse(text)
    for path, part in leaves(tree):
        if path:
            rest = text[position(tree, path) :]
            assert json.JSONDecoder().raw_decode(rest)[0] == part


def test_ten_megabytes_are_read() -> None:
    """Of the kind that is that large: a rule-set in source form."""
    names = [f"host{number}.example{number % 7}.com" for number in range(350_000)]
    text = json.dumps({"version": 3, "rules": [{"domain_suffix": names}]}, indent=1)
    assert len(text) > 10_000_000
    tree = parse(text)
    assert tree["rules"][0]["domain_suffix"] == names

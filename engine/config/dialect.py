"""sing-box's JSON dialect: text in, a tree of values out, in which every key and every value knows where it stands.

Beyond JSON (RFC 8259): comments `//`, `#` (to the end of the line, which is LF or a lone CR) and `/* */` between tokens;
one comma after the last item of an object or list; a key that stands twice counts where it stands last. sing-box takes the
same, tried with `sing-box check` 1.14. Two things differ from Python's json: NaN and Infinity are refused, and half a
surrogate pair becomes U+FFFD, as in Go.

The tree consists of the values that json.loads would make, but for objects and lists, which are an Object and an Array.
"""

import re
from array import array
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # undocumented, and what json itself uses
from typing import Any

__all__ = ["Array", "DialectError", "Object", "Path", "decode_text", "parse", "position", "tags_in", "value_at"]

DEPTH_MAX = 200
"""Objects and lists within one another. The deepest real file has about ten levels."""
NUMBER_MAX = 400
"""Characters of a number: more than any double needs, and less than Python refuses to convert (4300 digits)."""


Path = tuple[str | int, ...]
"""Keys and indices from the root of a tree."""


class DialectError(Exception):
    """The text is not of the dialect; `at` is the position, the text one sentence."""

    def __init__(self, at: int, sentence: str) -> None:
        super().__init__(sentence)
        self.at = at


class Object(dict[str, Any]):
    """A JSON object that knows where it stands, and where its keys and values do."""

    __slots__ = ("at", "key_at", "repeated", "value_at")

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at
        self.repeated: list[tuple[str, int]] = []
        """Keys that stood here before, and where: their values are gone."""
        self.key_at: dict[str, int] = {}
        self.value_at: dict[str, int] = {}

    def put(self, key: str, value: Any, *, key_at: int, value_at: int) -> None:
        """Set a value and where it stands; a key that was there before moves to the end."""
        if key in self:
            del self[key]
            self.repeated.append((key, self.key_at[key]))
        self[key] = value
        self.key_at[key] = key_at
        self.value_at[key] = value_at


class Array(list[Any]):
    """A JSON list that knows where it and its items stand."""

    __slots__ = ("at", "item_at")

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at
        self.item_at: array[int] = array("q")

    def add(self, value: Any, at: int) -> None:
        """Append an item and where it stands."""
        self.append(value)
        self.item_at.append(at)


def position(tree: Any, path: Path, *, of_key: bool = False) -> int:
    """Return where the value at `path` stands (or its key), or the deepest of its parents that exists."""
    at = tree.at if isinstance(tree, Object | Array) else 0
    for index, step in enumerate(path):
        if isinstance(tree, Object) and step in tree:
            assert isinstance(step, str)
            at = (tree.key_at if of_key and index == len(path) - 1 else tree.value_at)[step]
        elif isinstance(tree, Array) and isinstance(step, int) and step < len(tree):
            at = tree.item_at[step]
        else:  # a scalar that stands for a list of one, or something that is not there
            break
        tree = tree[step]
    return at


def value_at(tree: Any, path: Path) -> Any:
    """Return the value at `path`, or None."""
    for step in path:
        if isinstance(tree, Array):
            tree = tree[step] if isinstance(step, int) and step < len(tree) else None
        else:
            tree = tree.get(str(step)) if isinstance(tree, Object) else None
    return tree


def tags_in(tree: Any, *path: str) -> frozenset[str]:
    """Return the values of `tag` of the objects in the list at `path`."""
    items = value_at(tree, path)
    tags = (item.get("tag") for item in items if isinstance(item, Object)) if isinstance(items, Array) else ()
    return frozenset(tag for tag in tags if isinstance(tag, str))


def decode_text(data: bytes) -> str:
    """Return the text of a file. Bytes that are no UTF-8 become U+FFFD, as in Go: within a comment they do no harm."""
    return data.decode("utf-8", errors="replace")


_SPACE = r"(?:[ \t\r\n]+|//[^\r\n]*|\#[^\r\n]*|/\*.*?\*/)*"
_TOKEN = re.compile(
    _SPACE + r'(?:"([^"\\\x00-\x1f]*)"'  # 1: a string without escapes
    r"|([\[\]{},:])"  # 2
    r"|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![0-9.+\-\w])"  # 3
    r"|(true|false|null)(?!\w)"  # 4
    r'|(")'  # 5: a string with escapes, or a bad one
    r"|)",
    re.DOTALL | re.ASCII,
)
_STRING, _MARK, _NUMBER, _WORD, _QUOTE = 1, 2, 3, 4, 5
_WORDS = {"true": True, "false": False, "null": None}
_SURROGATE = re.compile("[\ud800-\udfff]")

# What may come next.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COMMA_OR_END, _END = range(6)


def parse(text: str, base: int = 0) -> Any:
    """Return the tree of `text`, whose first character is at position `base`. Raises DialectError, and nothing else."""
    match = _TOKEN.match
    stack: list[Object | Array] = []
    container: Object | Array | None = None
    root: Any = None
    key, key_at = "", 0
    state, offset = _VALUE, 0
    while True:
        token = match(text, offset)
        assert token is not None, "the pattern matches the empty string"
        kind = token.lastindex
        offset = token.end()
        value: Any
        if kind == _STRING:
            value, start = token[1], token.start(1) - 1
        elif kind == _MARK:
            mark, start = token[2], offset - 1
            if mark == ",":
                if state != _COMMA_OR_END:
                    raise _unexpected(text, start, base, state)
                state = _KEY_OR_END if type(container) is Object else _VALUE_OR_END
                continue
            if mark in "]}":
                if state not in (_COMMA_OR_END, _KEY_OR_END, _VALUE_OR_END):
                    raise _unexpected(text, start, base, state)
                if type(container) is not (Array if mark == "]" else Object):
                    opened = (
                        "the object that begins with '{' ends with '}'"
                        if mark == "]"
                        else "the list that begins with '[' ends with ']'"
                    )
                    raise DialectError(base + start, f"{opened}, and here stands '{mark}'")
                stack.pop()
                container = stack[-1] if stack else None
                state = _COMMA_OR_END if stack else _END
                continue
            if mark == ":" or state not in (_VALUE, _VALUE_OR_END):
                raise _unexpected(text, start, base, state)
            value = Object(base + start) if mark == "{" else Array(base + start)
        elif kind == _NUMBER:
            start = token.start(3)
            value = _number(token[3], base + start)
        elif kind == _WORD:
            value, start = _WORDS[token[4]], token.start(4)
        elif kind == _QUOTE:
            start = offset - 1
            value, offset = _string(text, offset, base)
        elif offset == len(text) and state == _END:
            return root
        else:
            raise _unexpected(text, offset, base, state)

        if state in (_KEY, _KEY_OR_END):
            if type(value) is not str:
                raise _unexpected(text, start, base, state)
            token = match(text, offset)
            assert token is not None
            if token[2] != ":":
                raise _unexpected(text, _skip_space(text, offset), base, state, after_key=True)
            key, key_at, offset, state = value, base + start, token.end(), _VALUE
            continue
        if state not in (_VALUE, _VALUE_OR_END):
            raise _unexpected(text, start, base, state)
        if isinstance(container, Object):
            container.put(key, value, key_at=key_at, value_at=base + start)
        elif isinstance(container, Array):
            container.add(value, base + start)
        else:
            root = value
        if type(value) is Object or type(value) is Array:
            if len(stack) == DEPTH_MAX:
                raise DialectError(base + start, f"more than {DEPTH_MAX} objects and lists stand within one another")
            stack.append(value)
            container = value
            state = _KEY_OR_END if type(value) is Object else _VALUE_OR_END
        else:
            state = _COMMA_OR_END if stack else _END


def _number(text: str, at: int) -> int | float:
    if len(text) > NUMBER_MAX:
        raise DialectError(at, f"a number of {len(text)} characters is too long")
    try:
        return int(text)
    except ValueError:
        return float(text)


def _string(text: str, offset: int, base: int) -> tuple[str, int]:
    """Read a string whose first character is at `offset`; return it and the offset behind its end."""
    try:
        value, end = scanstring(text, offset, True)
    except JSONDecodeError as error:
        if "Unterminated" in error.msg:
            sentence = "this string has no end: a quotation mark is missing"
            raise DialectError(base + offset - 1, sentence) from None
        if "control" in error.msg:
            raise DialectError(
                base + error.pos,
                "a line break or control character stands within a string; write \\n or close the string",
            ) from None
        raise DialectError(
            base + error.pos, 'a backslash in a string begins one of \\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX'
        ) from None
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value), end


_WANTED = {
    _VALUE: "a value",
    _VALUE_OR_END: "a value or ']'",
    _KEY: "a key in quotation marks",
    _KEY_OR_END: "a key in quotation marks or '}'",
    _COMMA_OR_END: "a comma or the end of the object or list",
    _END: "nothing more",
}


def _unexpected(text: str, offset: int, base: int, state: int, *, after_key: bool = False) -> DialectError:
    """Say what is wrong with what stands at `offset`."""
    return DialectError(base + offset, _sentence(text, offset, state, after_key))


def _sentence(text: str, offset: int, state: int, after_key: bool) -> str:
    rest = text[offset : offset + 40]
    if not rest:
        if not text.strip():
            return "the file is empty"
        if state == _VALUE and offset == _skip_space(text, 0):
            return "the file holds only comments"
        return "the file ends too early: a '}' or ']' is missing"
    first = rest[0]
    for start, sentence in _KNOWN.items():
        if rest.startswith(start):
            return sentence
    if after_key:
        return f"':' is missing between the key and its value; here stands {_shown(rest)}"
    if state == _END:
        return f"after the end of the file's one object stands {_shown(rest)}"
    if first == ",":
        return "a comma too many, or a value is missing before it"
    if state == _COMMA_OR_END and first not in ":]}":
        return f"a comma is missing before {_shown(rest)}"
    if state in (_KEY, _KEY_OR_END) and re.match(r"[A-Za-z_$]", first):
        return f"the key {_shown(rest)} must stand in quotation marks"
    return f"{_shown(rest)} is not expected here, but {_WANTED[state]}"


def _skip_space(text: str, offset: int) -> int:
    """Return the offset of the next thing that is neither blank nor comment."""
    space = _SPACE_ONLY.match(text, offset)
    assert space is not None, "the pattern matches the empty string"
    return space.end()


_SPACE_ONLY = re.compile(_SPACE, re.DOTALL)
_KNOWN = {
    "\ufeff": "the file begins with a byte order mark: save it as UTF-8 without BOM",
    "\N{NO-BREAK SPACE}": "here stands a no-break space (U+00A0), often from a web page: replace it by a plain one",
    "\N{LEFT DOUBLE QUOTATION MARK}": 'here stands a typographic quotation mark: replace it by "',
    "\N{RIGHT DOUBLE QUOTATION MARK}": 'here stands a typographic quotation mark: replace it by "',
    "\N{FULLWIDTH COMMA}": "here stands a full-width comma: replace it by ,",
    "\N{FULLWIDTH COLON}": "here stands a full-width colon: replace it by :",
    "'": 'strings stand in double quotation marks, as in "tun"',
    "/*": "this comment has no end: */ is missing",
    "<!--": "comments are // or # to the end of the line, or /* ... */",
    "--": "comments are // or # to the end of the line, or /* ... */",
    ";": "a semicolon separates nothing in JSON: write a comma",
    "\N{REPLACEMENT CHARACTER}": "this byte is not UTF-8: save the file as UTF-8",
}


def _shown(rest: str) -> str:
    """Return the word at the beginning of `rest`, quoted."""
    word = re.match(r"\w+|\"[^\"]{0,30}\"?|.", rest, re.DOTALL)
    return repr(word[0] if word else rest)

"""Regular expressions of rules. They are RE2's; Python's `re` does the work, and what differs is translated or refused."""

import re

__all__ = ["compile_regex"]

_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": "\\x00-\\x7F", "blank": "\\t ", "cntrl": "\\x00-\\x1F\\x7F",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~",
    "space": "\\t\\n\\v\\f\\r ", "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_POSIX = re.compile(r"\[:(\w+):\]")
_FOREIGN = (
    (re.compile(r"\(\?<?[=!]"), "look-around"),
    (re.compile(r"\\[1-9]|\(\?P="), "a back-reference"),
    (re.compile(r"\(\?\("), "a condition"),
    (re.compile(r"\(\?>"), "an atomic group"),
    (re.compile(r"\(\?#"), "a comment"),
    (re.compile(r"\\[pPCQE]"), "a Unicode class, \\C or \\Q"),
)  # fmt: skip
_ESCAPED = re.compile(r"\\\\")


def compile_regex(pattern: str) -> re.Pattern[str]:
    """Compile `pattern`, to be searched for anywhere. Raises ValueError with a sentence that says what is wrong."""
    plain = _ESCAPED.sub("", pattern)
    for foreign, name in _FOREIGN:
        if foreign.search(plain):
            raise ValueError(f"the regular expression {pattern!r} has {name}, which RE2 or this engine does not know")
    translated = _POSIX.sub(lambda found: _CLASSES.get(found[1], found[0]), pattern).replace(r"\z", r"\Z")
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

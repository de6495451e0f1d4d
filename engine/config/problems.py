"""Where something stands in the user's files, and what is wrong with it: all of it, told together.

A position is one int: `Sources` gives each file a range of its own, so that a tree merged from several files still knows
which file each value comes from.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from engine.config.dialect import Path, position

__all__ = ["ConfigError", "Place", "Problem", "Problems", "Report", "Sources", "printable_path"]


class Place(NamedTuple):
    """File, line and column; the latter two count from 1, a column is one character."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing that is wrong, or that the user should know."""

    at: int
    """Position in Sources."""
    place: Place
    sentence: str
    """With the key path in front where there is one."""
    is_error: bool
    path: Path = ()

    def __str__(self) -> str:
        return f"{self.place}: {'' if self.is_error else 'warning: '}{self.sentence}"


class Sources:
    """The files that were read, and the positions in them."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._files: list[tuple[str, str]] = []
        self._line_starts: dict[int, list[int]] = {}
        self._next = 0

    def add(self, file: str, text: str) -> int:
        """Take a file in; return the position of its first character."""
        base = self._next
        self._bases.append(base)
        self._files.append((file, text))
        self._next = base + len(text) + 1  # the end of the text is a place, too
        return base

    def place(self, at: int) -> Place:
        """Return where a position is."""
        index = max(bisect_right(self._bases, at) - 1, 0)
        file, text = self._files[index]
        starts = self._line_starts.get(index)
        if starts is None:
            starts = self._line_starts[index] = list(_line_starts(text))
        offset = at - self._bases[index]
        line = bisect_right(starts, offset)
        return Place(file, line, offset - starts[line - 1] + 1)


def _line_starts(text: str) -> Iterator[int]:
    yield 0
    found = text.find("\n")
    while found >= 0:
        yield found + 1
        found = text.find("\n", found + 1)


class Problems:
    """Collects what is wrong with the files of one configuration."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._found: dict[tuple[int, str], Problem] = {}

    def error(self, at: int, sentence: str, path: Path = ()) -> None:
        """Note something that must be mended."""
        self._add(at, sentence, path, is_error=True)

    def warning(self, at: int, sentence: str, path: Path = ()) -> None:
        """Note something that the user should know."""
        self._add(at, sentence, path, is_error=False)

    def _add(self, at: int, sentence: str, path: Path, *, is_error: bool) -> None:
        text = f"{printable_path(path)}: {sentence}" if path else sentence
        self._found.setdefault((at, text), Problem(at, self.sources.place(at), text, is_error, path))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """In the order of the files."""
        return tuple(sorted(problem for problem in self._found.values() if problem.is_error))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """In the order of the files."""
        return tuple(sorted(problem for problem in self._found.values() if not problem.is_error))

    def raise_errors(self) -> None:
        """Raise ConfigError when there is any error."""
        if self.errors:
            raise ConfigError(self.errors, self.warnings)


class Report:
    """Problems of one tree, told by the key path at which they are."""

    def __init__(self, problems: Problems, tree: Any) -> None:
        self.problems = problems
        self.tree = tree

    def error(self, path: Path, sentence: str, *, of_key: bool = False) -> None:
        """Note something that must be mended, at the value of `path` (or its key)."""
        self.problems.error(position(self.tree, path, of_key=of_key), sentence, path)

    def warning(self, path: Path, sentence: str, *, of_key: bool = False) -> None:
        """Note something that the user should know, at the value of `path` (or its key)."""
        self.problems.warning(position(self.tree, path, of_key=of_key), sentence, path)

    def origin(self, path: Path) -> str:
        """Return where the value at `path` stands, as in `config.json:41:7`."""
        return str(self.problems.sources.place(position(self.tree, path)))


class ConfigError(Exception):
    """The configuration cannot be used; the text has one line for each error."""

    def __init__(self, errors: tuple[Problem, ...], warnings: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors
        self.warnings = warnings


def printable_path(path: Path) -> str:
    """Return a key path as sing-box prints it: `route.rules[3].ip_cidr[0]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")

"""Files of other programs as trees with positions (engine/config/dialect), whether they are JSON or YAML."""

from collections.abc import Iterator
from typing import Any

import yaml

from engine.config.dialect import Array, DialectError, Object, parse
from engine.config.legacy import fold_keys
from engine.config.problems import Problems, Report

__all__ = ["each", "read_tree", "text_of", "whole_number"]

NODES_MAX = 2_000_000
"""Values of a YAML file with its aliases written out: an alias may stand for a list of aliases, and so on."""


def read_tree(kind: str, text: str, file: str, problems: Problems) -> Object:
    """Return the tree of a file, its keys in lower case; what is wrong with it goes to `problems`."""
    base = problems.sources.add(file, text)
    is_json = text.lstrip("\ufeff \t\r\n").startswith(("{", "//", "/*")) or (
        kind != "clash" and not _looks_like_yaml(text)
    )
    try:
        tree = parse(text, base) if is_json and kind != "clash" else _from_yaml(text, base)
    except DialectError as error:
        problems.error(error.at, str(error))
        return Object(base)
    if not isinstance(tree, Object):
        problems.error(base, f"this is no configuration of {kind}: it is not an object with keys and values")
        return Object(base)
    fold_keys(tree, Report(problems, tree))
    return tree


def _looks_like_yaml(text: str) -> bool:
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "//", "---")))
    first = next(lines, "")
    return bool(first) and not first.lstrip().startswith(("{", "[", '"', "/*")) and ":" in first


def _from_yaml(text: str, base: int) -> Any:
    """Return the tree of a YAML document, aliases and merge keys resolved. Raises DialectError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = f"this is no YAML: {error.problem or error.context}"
        if mark is not None and text[mark.index : mark.index + 1] == "\t":
            sentence += "; a tab stands where YAML wants blanks"
        raise DialectError(base + (min(mark.index, len(text)) if mark is not None else 0), sentence) from None
    except yaml.YAMLError as error:
        at = getattr(error, "position", 0)
        raise DialectError(
            base + (at if isinstance(at, int) else 0), "this is no YAML: it has a character that YAML forbids"
        ) from None
    except RecursionError:
        raise DialectError(base, "this YAML is nested too deeply") from None
    if node is None:
        raise DialectError(base, "the file is empty")
    constructor = yaml.SafeLoader("")
    try:
        return _Converter(constructor, base).convert(node, 0)
    except RecursionError:
        raise DialectError(base, "this YAML is nested too deeply") from None
    finally:
        constructor.dispose()


class _Converter:
    def __init__(self, constructor: yaml.SafeLoader, base: int) -> None:
        self._constructor = constructor
        self._base = base
        self._count = 0

    def convert(self, node: yaml.Node, depth: int) -> Any:
        self._count += 1
        at = self._base + node.start_mark.index
        if self._count > NODES_MAX or depth > 100:
            raise DialectError(at, "this YAML is too large once its aliases are written out")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode):
            array = Array(at)
            for item in node.value:
                array.add(self.convert(item, depth + 1), self._base + item.start_mark.index)
            return array
        if node.tag in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary"):
            return node.value
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            return node.value

    def _mapping(self, node: yaml.MappingNode, at: int, depth: int) -> Object:
        made = Object(at)
        for key, value in self._pairs(node, 0):
            if not isinstance(key, yaml.ScalarNode):
                raise DialectError(self._base + key.start_mark.index, "a key is a word, not a list")
            made.put(
                key.value,
                self.convert(value, depth + 1),
                key_at=self._base + key.start_mark.index,
                value_at=self._base + value.start_mark.index,
            )
        made.repeated.clear()  # an anchor's keys are meant to be overridden
        return made

    def _pairs(self, node: yaml.MappingNode, depth: int) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield keys and values, those of merge keys (`<<`) first, so that the mapping's own come after and count."""
        if depth > 20:
            raise DialectError(self._base + node.start_mark.index, "merge keys refer to one another in a circle")
        own = []
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                own.append((key, value))
                continue
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(merged):
                if not isinstance(part, yaml.MappingNode):
                    raise DialectError(
                        self._base + part.start_mark.index, "a merge key (<<) takes a mapping or a list of them"
                    )
                yield from self._pairs(part, depth + 1)
        yield from own


# What programs written in Go take for a list, a text, a number


def each(tree: Object, *keys: str, split: bool = True) -> Iterator[tuple[Any, int]]:
    """Yield the items of the first of `keys` that is there, and where they stand: a list, or one item (`"a,b"` are two)."""
    for key in keys:
        value = tree.get(key)
        if value is None:
            continue
        if isinstance(value, Array):
            yield from zip(value, value.item_at, strict=True)
        elif isinstance(value, str) and split:
            for part in value.split(","):
                if part.strip():
                    yield part.strip(), tree.value_at[key]
        else:
            yield value, tree.value_at[key]
        return


def text_of(tree: Any, key: str) -> str:
    """Return the value of a key as text; empty when there is none."""
    value = tree.get(key) if isinstance(tree, Object) else None
    if value is None or isinstance(value, Object | Array):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def whole_number(value: Any) -> int | None:
    """Return a port that stands as a number, as text, or as the first of a range or list: `"1080"`, `"80-90"`, `"53,443"`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        first = value.replace(",", "-").partition("-")[0].strip()
        value = int(first) if first.isascii() and first.isdecimal() and len(first) < 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None

"""Tree -> msgspec Structs of engine/config/options, collecting every error instead of stopping at the first.

msgspec's own convert knows no positions and stops at the first error; so this walks the annotations of the Structs itself.
What cannot be read is reported and left at its default: every field has one, and `Required` tells which must be there.
A null is as good as a missing key.
"""

import types
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from engine.config.dialect import Array, Object, Path, position
from engine.config.fields import (
    FLAT,
    LISTABLE,
    Hidden,
    Ignored,
    Never,
    Read,
    Required,
    Shorthand,
    Unsupported,
    Variants,
)
from engine.config.problems import Report

__all__ = ["Field", "Options", "decode", "fields_of", "nearest", "unwrap"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all option Structs: one JSON object."""

    where: Annotated[Path, Hidden()] = ()
    """Key path of the object in its tree; no key of the file."""
    given: Annotated[frozenset[str], Hidden()] = frozenset()
    """Keys that stand in the object with a value other than null; no key of the file."""


T = TypeVar("T", bound=Options)
_WRONG = object()
"""Stands for a value that could not be read; it has been reported."""
_OWN = ("where", "given")


class Field(NamedTuple):
    """One key of an option Struct."""

    key: str
    name: str
    annotation: Any
    marks: tuple[Any, ...]
    part: str | None = None
    """Name of the FLAT Struct that holds it."""


@cache
def fields_of(struct: type) -> dict[str, Field]:
    """Return the keys that may stand in an object of this kind, those of its FLAT parts included."""
    found = {}
    for info in msgspec.structs.fields(struct):
        annotation, marks = unwrap(info.type)
        if FLAT in marks:
            found.update({key: field._replace(part=info.name) for key, field in fields_of(annotation).items()})
        elif info.name not in _OWN:
            found[info.encode_name] = Field(info.encode_name, info.name, annotation, marks)
    return found


@cache
def _parts_of(struct: type) -> dict[str, type[Options]]:
    """Return the FLAT Structs of a Struct, by the names of their fields."""
    unwrapped = {info.name: unwrap(info.type) for info in msgspec.structs.fields(struct)}
    return {name: annotation for name, (annotation, marks) in unwrapped.items() if FLAT in marks}


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split Annotated[T, marks] and T | None into T and the marks."""
    marks: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            marks = (*more, *marks)
        elif get_origin(annotation) in (Union, types.UnionType):
            options = [option for option in get_args(annotation) if option is not type(None)]
            if len(options) != 1:
                return annotation, marks
            annotation = options[0]
        else:
            return annotation, marks


def decode(struct: type[T], tree: Any, path: Path, report: Report) -> T:
    """Return the object `tree`, which stands at `path`, as a `struct`; whatever is wrong with it goes to `report`."""
    if not isinstance(tree, Object):
        report.error(path, f"an object in {{ }} is wanted here, not {_shown(tree)}")
        return struct()
    fields = fields_of(struct)
    parts = _parts_of(struct)
    values: dict[str, Any] = {}
    values_of: dict[str | None, dict[str, Any]] = {None: values, **{part: {} for part in parts}}
    given = []
    for key, value in tree.items():
        field = fields.get(key)
        if field is None:
            report.error((*path, key), unknown_key(key, fields, tree), of_key=True)
        elif value is not None:
            given.append(key)
            read = _field(field, value, (*path, key), report)
            if read is not _WRONG:
                values_of[field.part][field.name] = read
    for field in fields.values():
        for mark in field.marks:
            if isinstance(mark, Required) and tree.get(field.key) is None:
                report.error(path, f"{field.key} is missing: {mark.sentence}")
    own: dict[str, Any] = {"where": path, "given": frozenset(given)}
    values |= {name: part(**values_of[name], **own) for name, part in parts.items()}
    return struct(**values, **own)


def unknown_key(key: str, fields: dict[str, Field], tree: Any = None) -> str:
    """Return the sentence about a key that is none of `fields`."""
    if key.startswith(("_", "//", "#", "comment")):
        return f'"{key}" is no key: comments are // or # to the end of the line'
    visible = [name for name, field in fields.items() if not any(isinstance(mark, Unsupported) for mark in field.marks)]
    return f'"{key}" is no key that is known here{nearest(key, visible)}'


def nearest(word: str, known: Any) -> str:
    """Return `; did you mean "x"?` when one of the known words is like `word`, else a short list of them or nothing."""
    known = [name for name in known if name]
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    if 0 < len(known) <= 12:
        return "; known: " + ", ".join(sorted(known))
    return ""


def _field(field: Field, value: Any, path: Path, report: Report) -> Any:
    for mark in field.marks:
        if isinstance(mark, Unsupported):
            if value:
                report.error(path, mark.sentence, of_key=True)
            return _WRONG
        if isinstance(mark, Ignored):
            if value:
                report.warning(path, mark.sentence, of_key=True)
            _value(field.annotation, field.marks, value, path, report)
            return _WRONG
        if isinstance(mark, Never) and value not in (False, [], ""):
            report.warning(path, f"{mark.sentence}, so that this rule matches nothing", of_key=True)
    return _value(field.annotation, field.marks, value, path, report)


def _value(annotation: Any, marks: tuple[Any, ...], value: Any, path: Path, report: Report) -> Any:
    for mark in marks:
        if mark is LISTABLE:
            (inner, *_) = get_args(annotation)
            return _list(inner, value if isinstance(value, Array) else [value], path, report, isinstance(value, Array))
        if isinstance(mark, Read):
            return _read(mark.read, value, path, report)
        if isinstance(mark, Variants):
            return _variant(mark, value, path, report)
        if isinstance(mark, Shorthand) and type(value) is mark.kind:
            whole = Object(position(report.tree, path))
            whole.put(mark.key, value, key_at=whole.at, value_at=whole.at)
            return decode(annotation, whole, path, report)
    return _plain(annotation, value, path, report)


def _plain(annotation: Any, value: Any, path: Path, report: Report) -> Any:
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return decode(annotation, value, path, report)
    if origin is Literal:
        known = get_args(annotation)
        if value in known and type(value) is type(known[0]):
            return value
        listed = [str(item) for item in known]
        hint = nearest(value, listed) if isinstance(value, str) else f"; known: {', '.join(listed)}"
        return _wrong(report, path, f"{_shown(value)} is not known here{hint}")
    if origin is tuple:
        if not isinstance(value, Array):
            return _wrong(report, path, f"a list in [ ] is wanted here, not {_shown(value)}")
        return _list(get_args(annotation)[0], value, path, report, True)
    if origin is dict:
        return _mapping(get_args(annotation)[1], value, path, report)
    if annotation is bool:
        if isinstance(value, bool):
            return value
        return _wrong(report, path, f"true or false is wanted here, not {_shown(value)}")
    if annotation is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return _wrong(report, path, f"a whole number is wanted here, not {_shown(value)}")
    if annotation is str:
        if isinstance(value, str):
            return value
        return _wrong(report, path, f"a string in quotation marks is wanted here, not {_shown(value)}")
    assert annotation in (Any, object), f"no reader for {annotation}"
    return value


def _list(inner: Any, items: Any, path: Path, report: Report, is_list: bool) -> tuple[Any, ...]:
    annotation, marks = unwrap(inner)
    found = []
    for index, item in enumerate(items):
        at = (*path, index) if is_list else path
        read = _value(annotation, marks, item, at, report) if item is not None else _null(at, report)
        if read is not _WRONG:
            found.append(read)
    return tuple(found)


def _null(path: Path, report: Report) -> Any:
    return _wrong(report, path, "null is no item of a list")


def _mapping(inner: Any, value: Any, path: Path, report: Report) -> Any:
    if not isinstance(value, Object):
        return _wrong(report, path, f"an object in {{ }} is wanted here, not {_shown(value)}")
    annotation, marks = unwrap(inner)
    read = {key: _value(annotation, marks, item, (*path, key), report) for key, item in value.items()}
    return {key: item for key, item in read.items() if item is not _WRONG}


def _read(read: Callable[[Any], Any], value: Any, path: Path, report: Report) -> Any:
    try:
        return read(value)
    except ValueError as error:
        return _wrong(report, path, str(error))


def _variant(variants: Variants, value: Any, path: Path, report: Report) -> Any:
    if not isinstance(value, Object):
        return _wrong(report, path, f"an object in {{ }} is wanted here, not {_shown(value)}")
    kind = value.get(variants.key)
    if kind is None:
        kind = variants.default
    known = sorted(variants.structs)
    if kind is None:
        hint = " (v2ray's word for it is protocol: use `engine import v2ray`)" if "protocol" in value else ""
        return _wrong(report, path, f"{variants.key} is missing{hint}: {variants.what} is one of {', '.join(known)}")
    at = (*path, variants.key)
    if not isinstance(kind, str):
        return _wrong(report, at, f"a string in quotation marks is wanted here, not {_shown(kind)}")
    struct = variants.structs.get(kind)
    if struct is not None:
        return decode(struct, value, path, report)
    if kind in variants.refused:
        return _wrong(report, at, f'"{kind}" is not supported: {variants.refused[kind]}')
    return _wrong(report, at, f'"{kind}" is no {variants.key} of {variants.what}{nearest(kind, known)}')


def _wrong(report: Report, path: Path, sentence: str) -> Any:
    report.error(path, sentence)
    return _WRONG


def _shown(value: Any) -> str:
    if isinstance(value, Object):
        return "an object"
    if isinstance(value, Array):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

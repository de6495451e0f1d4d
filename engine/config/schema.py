"""The JSON schema of configuration files, for editors; made of the same Structs that files are decoded into.

    {"$schema": "https://.../docs/engine.schema.json", "inbounds": [...]}

The text of a key is the docstring of its field. Keys that are an error here are left out, so that an editor underlines them;
those that make no difference are marked as deprecated.
"""

import ast
import inspect
import json
import sys
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec

from engine.config.decode import Options, fields_of, unwrap
from engine.config.fields import LISTABLE, Ignored, Never, Read, Required, Shorthand, Unsupported, Variants
from engine.config.options.route import FileOptions

__all__ = ["json_schema"]


def json_schema() -> str:
    """Return the schema as text (JSON Schema, draft 2020-12)."""
    definitions: dict[str, Any] = {}
    _define(FileOptions, definitions)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of engine (tunloom)",
        "$ref": "#/$defs/FileOptions",
        "$defs": dict(sorted(definitions.items())),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _define(struct: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Add the definition of a Struct; return a reference to it."""
    name = struct.__name__
    if name not in definitions:
        definitions[name] = {}  # a place for those that refer to it meanwhile
        definitions[name] = _object(struct, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _object(struct: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    texts = _texts(struct)
    for key, field in fields_of(struct).items():
        if any(isinstance(mark, Unsupported) for mark in field.marks):
            continue
        schema = _type(field.annotation, field.marks, definitions)
        text = texts.get((field.part, field.name))
        for mark in field.marks:
            if isinstance(mark, Required):
                required.append(key)
            if isinstance(mark, Ignored | Never):
                text, schema = mark.sentence, {**schema, "deprecated": True}
        properties[key] = {**schema, "description": text} if text else schema
    made = {
        "type": "object",
        "description": _first_paragraph(struct),
        "properties": properties,
        "additionalProperties": False,
    }
    return {**made, "required": required} if required else made


def _first_paragraph(struct: type) -> str:
    return " ".join((inspect.getdoc(struct) or "").partition("\n\n")[0].split())


def _type(annotation: Any, marks: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    for mark in marks:
        if mark is LISTABLE:
            inner = _type(*unwrap(get_args(annotation)[0]), definitions)
            return {"anyOf": [inner, {"type": "array", "items": inner}]}
        if isinstance(mark, Read):
            return mark.schema
        if isinstance(mark, Variants):
            return _variants(mark, definitions)
        if isinstance(mark, Shorthand):
            kind = {"type": "string" if mark.kind is str else "boolean"}
            return {"anyOf": [kind, _define(annotation, definitions)]}
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return _define(annotation, definitions)
    if get_origin(annotation) is Literal:
        return {"enum": list(get_args(annotation))}
    if get_origin(annotation) is tuple:
        return {"type": "array", "items": _type(*unwrap(get_args(annotation)[0]), definitions)}
    if get_origin(annotation) is dict:
        return {"type": "object", "additionalProperties": _type(*unwrap(get_args(annotation)[1]), definitions)}
    names = {bool: "boolean", int: "integer", str: "string"}
    return {"type": names[annotation]} if annotation in names else {}


def _variants(variants: Variants, definitions: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[type, list[str]] = {}
    for name, struct in variants.structs.items():
        if name:
            kinds.setdefault(struct, []).append(name)
    options = []
    for struct, names in kinds.items():
        reference = _define(struct, definitions)
        key: dict[str, Any] = {"properties": {variants.key: {"enum": names}}}
        if variants.default not in names:
            key["required"] = [variants.key]
        options.append({"allOf": [reference, key]})
    return options[0] if len(options) == 1 else {"anyOf": options}


@cache
def _texts(struct: type) -> dict[tuple[str | None, str], str]:
    """Return the docstrings of the fields of a Struct, its bases and its FLAT parts included."""
    texts: dict[tuple[str | None, str], str] = {}
    for base in reversed(struct.__mro__):
        if base is not msgspec.Struct and issubclass(base, msgspec.Struct):
            texts |= {(None, name): text for name, text in _docstrings(base).items()}
    for field in fields_of(struct).values():
        if field.part is not None:
            part, _ = unwrap(next(info.type for info in msgspec.structs.fields(struct) if info.name == field.part))
            text = _texts(part).get((None, field.name))
            if text:
                texts[field.part, field.name] = text
    return texts


@cache
def _docstrings(struct: type) -> dict[str, str]:
    """Return the strings that stand below the fields of a class, which Python itself forgets."""
    tree = ast.parse(inspect.getsource(sys.modules[struct.__module__]))
    (node,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == struct.__name__)
    found = {}
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = " ".join(following.value.value.split())
    return found

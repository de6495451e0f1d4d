"""Rules of the source tree that no linter knows: who may import whom, what is pure, how large a file may be."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "workers", "shared", "loadtests")
MAY_IMPORT = {
    "shared": {"shared"},
    "engine": {"engine", "shared"},
    "workers": {"workers", "shared"},
}
THIRD_PARTY = {
    "shared": {"msgspec"},
    "engine": {
        "aiohttp", "dns", "msgspec", "netaddr", "prometheus_client", "pyroute2", "python_socks", "re2", "rich", "typer", "uvloop",
        "yaml",
    },
    "workers": {"cryptography", "dns", "h2", "hpack", "msgspec", "python_socks", "uvloop"},
}  # fmt: skip
PURE_DNS = ("answers", "cache", "wire")
PURE = ("workers/sniff", "workers/stack", "shared/wire", *(f"workers/dns/{name}.py" for name in PURE_DNS))
IMPURE = {
    "asyncio", "os", "random", "secrets", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading",
    "time", "uvloop",
}  # fmt: skip
LINES_MAX = 400
LONGER = {"workers/stack/tcp/connection.py": 650}
"""The one state machine that reads better in one piece."""
PLATFORM_PICKERS = {
    "engine/tun/__init__.py",
    "engine/netconf/__init__.py",
    "engine/processes/__init__.py",
    "engine/run/__init__.py",
    "shared/system/__init__.py",
}
BASES_WITHOUT_METHODS = {"Protocol", "Exception", "Enum", "IntEnum", "NamedTuple", "msgspec.Struct"}
NO_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def sources(*packages: str) -> list[Path]:
    """Python files of `packages`, relative to the root of the repository."""
    return sorted(path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(module: ast.Module) -> Iterator[str]:
    """Full names of everything that a module imports, also within functions."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "relative imports hide what is imported"
            yield node.module


def each_source(*packages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", sources(*packages), ids=str)


def test_the_sources_are_found() -> None:
    """Without this an empty list would make all rules below hold."""
    found = {str(path) for path in sources(*PACKAGES)}
    assert {"engine/ingress.py", "workers/link.py", "shared/ring.py", "shared/wire/checksum.py"} <= found
    assert found >= PLATFORM_PICKERS
    assert LONGER.keys() <= found


@each_source(*MAY_IMPORT)
def test_engine_and_workers_meet_only_in_shared(path: Path) -> None:
    package = path.parts[0]
    roots = {name.partition(".")[0] for name in imported(tree(path))}
    foreign = roots - MAY_IMPORT[package] - THIRD_PARTY[package] - sys.stdlib_module_names
    assert not foreign, f"{package} may not import {sorted(foreign)}"


@pytest.mark.parametrize("path", [path for path in sources("workers", "shared") if str(path).startswith(PURE)], ids=str)
def test_protocol_code_does_no_io_and_asks_no_clock(path: Path) -> None:
    impure = {name.partition(".")[0] for name in imported(tree(path))} & IMPURE
    assert not impure, f"protocol code gets bytes and `now`, and returns values; it may not import {sorted(impure)}"


@pytest.mark.parametrize("path", [path for path in sources("workers", "shared") if str(path).startswith(PURE)], ids=str)
def test_protocol_code_imports_protocol_code(path: Path) -> None:
    """What is pure would not stay so, did it import an impure module of ours."""
    allowed = (
        "workers.sniff", "workers.stack", *(f"workers.dns.{name}" for name in PURE_DNS),
        "shared.wire", "shared.buffer", "shared.config", "shared.metrics",
    )  # fmt: skip
    ours = [name for name in imported(tree(path)) if name.partition(".")[0] in MAY_IMPORT]
    assert [name for name in ours if not name.startswith(allowed)] == []


@each_source(*PACKAGES)
def test_file_is_short_enough_to_be_read_at_once(path: Path) -> None:
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= LONGER.get(str(path), LINES_MAX)


@each_source(*PACKAGES)
def test_module_is_named_after_what_it_does(path: Path) -> None:
    assert path.stem not in NO_NAMES


@each_source(*PACKAGES)
def test_public_names_have_docstrings(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{path} does not say what it is for"
    bare = [name for name, node in public_definitions(module) if not ast.get_docstring(node)]
    assert not bare, f"without docstring: {bare}"


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(module: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Classes and functions at the top of a module, and the methods of those classes, that begin with no underscore.

    A method that may stand for one of a base class has its contract there; a setter has it at its getter.
    """
    for node in module.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} <= BASES_WITHOUT_METHODS:
            for member in node.body:
                if isinstance(member, Definition) and not member.name.startswith("_") and not is_setter(member):
                    yield f"{node.name}.{member.name}", member


def is_setter(node: Definition) -> bool:
    return any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in node.decorator_list)


@each_source(*PACKAGES)
def test_platform_is_asked_for_in_the_pickers_alone(path: Path) -> None:
    if str(path) in PLATFORM_PICKERS:
        return
    asked = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("sys", "platform"), ("platform", "system"), ("os", "uname")}
    ]
    assert not asked, f"{path}: the platform is picked in {sorted(PLATFORM_PICKERS)}; found in lines {asked}"

"""Configurations of other programs -> a configuration of ours that means the same.

The other program stays: it speaks its protocol to its server, and listens on this machine. What is made here leads every flow to
its local port, carries over the rules that need not go there (direct, blocked), keeps its servers out of the tun, and takes over
DNS. What is left out is told, with the line where it stands: mostly the other program does it anyway, once a flow is there.

v2ray     V2Ray and Xray, v4 and jsonv5
clash     Clash and mihomo
sing_box  sing-box and Hiddify
draft     what all three fill in
tree      files -> trees with positions
settle    takes out what the loader would refuse
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from engine.config.importers.clash import import_clash
from engine.config.importers.draft import Draft
from engine.config.importers.settle import settle
from engine.config.importers.sing_box import import_sing_box
from engine.config.importers.tree import read_tree
from engine.config.importers.v2ray import import_v2ray
from engine.config.problems import Problem, Problems, Sources

__all__ = ["IMPORTERS", "Imported", "import_text"]

IMPORTERS: dict[str, Callable[[Any, Draft], None]] = {
    "v2ray": import_v2ray,
    "clash": import_clash,
    "sing-box": import_sing_box,
}


class Imported(NamedTuple):
    """What came out."""

    config: dict[str, Any]
    """Of our dialect, plain JSON."""
    left: tuple[Problem, ...]
    """What was not carried over, and where it stands."""


def import_text(kind: str, text: str, file: str) -> Imported:
    """Return what the text of a file becomes; `kind` is a key of IMPORTERS. Raises ConfigError when nothing can be made of it."""
    problems = Problems(Sources())
    tree = read_tree(kind, text, file, problems)
    problems.raise_errors()
    draft = Draft(problems, Path(file))
    IMPORTERS[kind](tree, draft)
    problems.raise_errors()
    config = settle(draft.config(), draft, tree.at)
    problems.raise_errors()
    return Imported(config, problems.warnings)

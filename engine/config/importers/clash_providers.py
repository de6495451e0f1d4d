"""Rule providers of Clash and mihomo -> inline rule-sets, where their rules stand in the file or in one that can be read."""

from pathlib import Path
from typing import Any

import yaml

from engine.config.dialect import Object
from engine.config.importers.clash_rules import NotCarried, conditions_of, name_condition, prefix_of
from engine.config.importers.draft import Draft
from engine.config.importers.tree import each, text_of

__all__ = ["import_providers"]

SIZE_MAX = 16 * 1024 * 1024
"""Bytes of a provider's file."""
SHOWN_MAX = 3
"""Items that could not be carried over and are named."""


def import_providers(tree: Object, draft: Draft) -> set[str]:
    """Add a rule-set for each provider whose every rule can be carried over; return their names."""
    providers = tree.get("rule-providers")
    carried: set[str] = set()
    if not isinstance(providers, Object):
        return carried
    for name, provider in providers.items():
        at = providers.key_at[name]
        if not isinstance(provider, Object):
            continue
        try:
            rules = _rules(text_of(provider, "behavior") or "classical", _payload(provider, draft))
        except NotCarried as error:
            draft.leave(at, f"the rule provider {name!r} is not carried over: {error}")
            continue
        draft.rule_sets.append({"type": "inline", "tag": name, "rules": rules})
        carried.add(name)
    return carried


def _payload(provider: Object, draft: Draft) -> list[str]:
    """Return the items of a provider. Raises NotCarried."""
    if text_of(provider, "type") == "inline":
        return [str(item) for item, _ in each(provider, "payload", split=False)]
    if text_of(provider, "format") == "mrs" or text_of(provider, "path").endswith(".mrs"):
        raise NotCarried("only Clash reads .mrs files")
    if not text_of(provider, "path"):
        raise NotCarried("it names no file")
    path = Path(draft.file.parent, text_of(provider, "path"))
    try:
        if path.stat().st_size > SIZE_MAX:
            raise NotCarried(f"{path} is larger than {SIZE_MAX >> 20} MiB")
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise NotCarried(f"{path} cannot be read") from None
    if text_of(provider, "format") == "text":
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "//"))]
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise NotCarried(f"{path} is no YAML") from None
    items = content.get("payload") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise NotCarried(f"{path} has no payload")
    return [str(item) for item in items]


def _rules(behavior: str, items: list[str]) -> list[dict[str, Any]]:
    """Return the rules of a set; Raises NotCarried when one of them cannot be carried over: half a set means something else."""
    found: dict[str, list[str]] = {}
    rules: list[dict[str, Any]] = []
    wrong: list[str] = []
    for item in items:
        try:
            if behavior == "domain":
                condition = name_condition(item)
                if condition is None:
                    raise NotCarried(item)
                found.setdefault(condition[0], []).append(condition[1])
            elif behavior == "ipcidr":
                found.setdefault("ip_cidr", []).append(prefix_of(item))
            else:
                kind, _, payload = item.partition(",")
                rules.append(conditions_of(kind.strip().upper(), payload.partition(",")[0].strip(), set()))
        except NotCarried:
            wrong.append(item)
    if wrong:
        raise NotCarried(f"it has {', '.join(map(repr, wrong[:SHOWN_MAX]))}")
    return [*([dict(found)] if found else []), *rules]

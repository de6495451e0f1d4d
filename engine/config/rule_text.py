"""Rules as people read them, in one line: `engine explain`, the Clash API."""

from typing import Any

import msgspec

from shared.config import Action, HijackDns, Logical, Match, Reject, Resolve, Route, Sniff

__all__ = ["action_text", "conditions_text"]

ITEMS_SHOWN = 4
"""Items of a list of conditions that are shown; rule lists may have thousands."""


def conditions_text(match: Match | Logical) -> str:
    """Return conditions as JSON, long lists shortened; nothing where there are none."""
    plain = _plain(match)
    return msgspec.json.encode(plain).decode() if plain else "any flow"


def _plain(match: Match | Logical) -> dict[str, Any]:
    if isinstance(match, Logical):
        plain: dict[str, Any] = {"mode": match.mode, "rules": [_plain(rule) for rule in match.rules]}
    else:
        plain = {}
        for name in Match.__struct_fields__:
            value = getattr(match, name)
            if name != "invert" and value not in ((), None, False):
                plain[name] = _shortened(name, value) if isinstance(value, tuple) else value
    return {**plain, "invert": True} if match.invert else plain


def _shortened(name: str, value: tuple[Any, ...]) -> list[Any]:
    items = [f"{item[0]}:{item[1]}" if name.endswith("port_range") else item for item in value[:ITEMS_SHOWN]]
    return [*items, f"... {len(value) - ITEMS_SHOWN} more"] if len(value) > ITEMS_SHOWN else items


def action_text(action: Action) -> str:
    """Return what a rule does, in a word or two."""
    match action:
        case Route():
            return f"-> {action.outbound}"
        case Reject():
            return "reject" if action.method == "default" else "drop"
        case HijackDns():
            return "hijack-dns"
        case Sniff():
            return "sniff"
        case Resolve():
            return "resolve"
        case _:
            return "route-options"

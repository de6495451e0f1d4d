"""Rules of Clash and mihomo -> ours. Those that need its databases or providers stay with Clash.

TYPE,payload,target[,parameters]      MATCH,target      AND,((TYPE,payload),(TYPE,payload)),target
"""

from ipaddress import ip_network
from typing import Any

from engine.config.dialect import Object
from engine.config.importers.draft import Draft, Target
from engine.config.importers.tree import each, whole_number
from shared.rules.regex import compile_regex

__all__ = ["NotCarried", "conditions_of", "import_rules", "name_condition", "prefix_of"]

_TARGETS: dict[str, Target] = {"direct": "direct", "reject": "reject", "reject-drop": "drop"}
_LAST_IS_TARGET = {"NOT", "OR", "AND", "SUB-RULE", "DOMAIN-REGEX", "PROCESS-NAME-REGEX", "PROCESS-PATH-REGEX"}
_PRIVATE_CODES = {"lan", "private"}
_LAN = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "224.0.0.0/4",
    "fe80::/10",
    "fc00::/7",
    "::1/128",
)


class NotCarried(Exception):
    """A rule that cannot be carried over; the text says why."""


def import_rules(tree: Object, draft: Draft, sets: set[str]) -> None:
    """Carry the rules over, in their order. `sets`: providers that have become rule-sets."""
    # Without MATCH Clash goes directly; without any rule they stand elsewhere (in a profile), and Clash decides.
    end: Target = "direct" if tree.get("rules") else "proxy"
    end_at = tree.key_at.get("rules", tree.at)
    for item, at in each(tree, "rules", split=False):
        line = str(item).strip()
        fields = [field.strip() for field in line.split(",")]
        kind = fields[0].upper()
        if kind in ("MATCH", "FINAL"):
            end, end_at = _target(fields[-1] if len(fields) == 2 else fields[1] if len(fields) > 2 else ""), at
            break
        if len(fields) < 3:
            draft.gap("proxy", at, f"{line!r} is no rule: it lacks a payload or a target")
            continue
        payload, target, parameters = _split(kind, fields)
        try:
            if kind == "RULE-SET" and payload in sets:
                source = {"rule_set_ip_cidr_match_source": True} if "src" in parameters else {}
                conditions = {"rule_set": [payload], **source}
            else:
                conditions = conditions_of(kind, payload, parameters)
        except NotCarried as error:
            draft.gap(_target(target), at, str(error))
            continue
        draft.rule(conditions, _target(target), at, always=_is_lan(conditions))
    draft.end(end, end_at)


def _split(kind: str, fields: list[str]) -> tuple[str, str, set[str]]:
    """Return payload, target and parameters."""
    if kind in _LAST_IS_TARGET:
        return ",".join(fields[1:-1]), fields[-1], set()
    return fields[1], fields[2], {field.lower() for field in fields[3:]}


def _target(name: str) -> Target:
    return _TARGETS.get(name.lower(), "proxy")


def _is_lan(conditions: dict[str, Any]) -> bool:
    """Whether a rule is about private addresses alone."""
    if set(conditions) - {"ip_is_private", "ip_cidr"}:
        return False
    prefixes = [ip_network(text) for text in conditions.get("ip_cidr", ())]
    lan = [ip_network(text) for text in _LAN]
    return all(any(p.version == q.version and p.subnet_of(q) for q in lan) for p in prefixes)  # type: ignore[arg-type]


def conditions_of(kind: str, payload: str, parameters: set[str]) -> dict[str, Any]:
    """Return conditions of ours. Raises NotCarried."""
    source = "src" in parameters or kind.startswith("SRC-")
    match kind:
        case "DOMAIN":
            return {"domain": [payload.lower()]}
        case "DOMAIN-SUFFIX":
            return {"domain_suffix": [payload.lower()]}
        case "DOMAIN-KEYWORD":
            return {"domain_keyword": [payload.lower()]}
        case "DOMAIN-REGEX":
            return {"domain_regex": [_regex(payload)]}
        case "DOMAIN-WILDCARD":
            return {"domain_regex": [_wildcard(payload.lower())]}
        case "IP-CIDR" | "IP-CIDR6" | "SRC-IP-CIDR" | "SOURCE-IP-CIDR":
            return {"source_ip_cidr" if source or kind == "SOURCE-IP-CIDR" else "ip_cidr": [prefix_of(payload)]}
        case "GEOIP" | "SRC-GEOIP" if payload.lower() in _PRIVATE_CODES:
            return {"source_ip_is_private" if source else "ip_is_private": True}
        case "DST-PORT" | "SRC-PORT":
            return _ports(payload, "source_port" if kind == "SRC-PORT" else "port")
        case "NETWORK" if payload.lower() in ("tcp", "udp"):
            return {"network": [payload.lower()]}
        case "PROCESS-NAME":  # Clash does not mind the case
            return {"process_path_regex": [f"(?i)(^|/){_quoted(payload)}$"]}
        case "PROCESS-NAME-WILDCARD":
            return {"process_path_regex": [f"(?i)(^|/){_wildcard(payload)[1:]}"]}
        case "PROCESS-PATH":
            return {"process_path": [payload]}
        case "PROCESS-PATH-REGEX":
            return {"process_path_regex": [_regex(payload)]}
        case "PROCESS-PATH-WILDCARD":
            return {"process_path_regex": [_wildcard(payload)]}
        case "UID" if payload.isdecimal():
            return {"user_id": [int(payload)]}
        case "AND" | "OR" | "NOT":
            return _logical(kind, payload)
    raise NotCarried(f"{kind},{payload}")


def _logical(kind: str, payload: str) -> dict[str, Any]:
    """Read `((DOMAIN,a.b),(NETWORK,UDP))`."""
    inner = payload.strip()
    if not (inner.startswith("(") and inner.endswith(")")):
        raise NotCarried(f"{kind},{payload}")
    rules = []
    for part in _parts(inner[1:-1]):
        fields = [field.strip() for field in part.split(",")]
        sub_kind = fields[0].upper()
        if len(fields) < 2:
            raise NotCarried(f"{kind},{payload}")
        whole = sub_kind in _LAST_IS_TARGET
        parameters = set() if whole else {field.lower() for field in fields[2:]}
        rules.append(conditions_of(sub_kind, ",".join(fields[1:]) if whole else fields[1], parameters))
    if not rules or (kind == "NOT" and len(rules) != 1):
        raise NotCarried(f"{kind},{payload}")
    if kind == "NOT":
        return {"type": "logical", "mode": "or", "rules": rules, "invert": True}
    return {"type": "logical", "mode": kind.lower(), "rules": rules}


def _parts(text: str) -> list[str]:
    """Split `(A,b),(C,d)` at the top level; return what stands within the parentheses."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character == "(":
            if depth == 0:
                start = index + 1
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start:index])
        if depth < 0:
            raise NotCarried(text)
    if depth:
        raise NotCarried(text)
    return parts


def prefix_of(text: str) -> str:
    """Return a prefix as it stands in our rules. Raises NotCarried."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise NotCarried(f"{text!r}, which is no prefix") from None


def _ports(payload: str, name: str) -> dict[str, Any]:
    single, ranges = [], []
    for part in payload.replace("/", ",").split(","):
        first, dash, last = part.strip().partition("-")
        low, high = whole_number(first), whole_number(last) if dash else whole_number(first)
        if low is None or high is None or not 0 <= low <= high <= 65535:
            raise NotCarried(f"the port {part!r}")
        if dash:
            ranges.append(f"{low}:{high}")
        else:
            single.append(low)
    return {**({name: single} if single else {}), **({f"{name}_range": ranges} if ranges else {})}


def _regex(text: str) -> str:
    try:
        compile_regex(text)
    except ValueError as error:
        raise NotCarried(str(error)) from None
    return text


def _quoted(text: str) -> str:
    return "".join(character if character.isalnum() or character in "/_-" else f"\\{character}" for character in text)


def _wildcard(text: str) -> str:
    """Return a regular expression for `*` (any text) and `?` (one character)."""
    return (
        "^"
        + "".join(".*" if character == "*" else "." if character == "?" else _quoted(character) for character in text)
        + "$"
    )


def name_condition(text: str) -> tuple[str, str] | None:
    """Return the condition for a name of Clash's DNS settings: `+.` and below, `.` below, `*` one label. None: a database."""
    text = text.lower()
    if not text or ":" in text or "," in text:
        return None
    if text.startswith("+.") and "*" not in text:
        return "domain_suffix", text[2:]
    if text.startswith(".") and "*" not in text:
        return "domain_suffix", text
    if "*" in text or "+" in text:
        labels = ["[^.]+" if label == "*" else ".+" if label == "+" else _quoted(label) for label in text.split(".")]
        return "domain_regex", "^" + "\\.".join(labels) + "$"
    return "domain", text

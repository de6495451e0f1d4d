"""The fields of a Match that stand alone: each must hold, whatever the others do."""

from collections.abc import Callable

from shared.config.route import Match
from shared.process import ProcessInfo
from shared.rules.flow import Flow
from shared.rules.regex import compile_regex

__all__ = ["Field", "other_fields", "process_fields"]

Field = tuple[str, Callable[[Flow], bool]]
"""Name, and whether it holds for a flow."""


def other_fields(match: Match) -> tuple[Field, ...]:
    """Return the fields that need nothing but the flow."""
    fields: list[Field] = []
    if match.network:
        networks = frozenset(match.network)
        fields.append(("network", lambda flow: flow.network in networks))
    if match.inbound:
        inbounds = frozenset(match.inbound)
        fields.append(("inbound", lambda flow: flow.inbound in inbounds))
    if match.ip_version is not None:
        size = 4 if match.ip_version == 4 else 16
        fields.append(("ip_version", lambda flow: len(flow.destination) == size))
    if match.protocol:
        protocols = frozenset(match.protocol)
        fields.append(("protocol", lambda flow: flow.protocol in protocols))
    if match.client:
        clients = frozenset(match.client)
        fields.append(("client", lambda flow: flow.client in clients))
    if match.query_type:
        types = frozenset(match.query_type)
        fields.append(("query_type", lambda flow: flow.query_type in types))
    if match.outbound:
        outbounds = frozenset(match.outbound)
        if "any" in outbounds:
            fields.append(("outbound", lambda flow: flow.outbound is not None))
        else:
            fields.append(("outbound", lambda flow: flow.outbound in outbounds))
    return tuple(fields)


def process_fields(match: Match) -> tuple[Field, ...]:
    """Return the fields that need Flow.process; they are to be asked only when it is there."""
    fields: list[Field] = []
    if match.process_name:
        fields.append(("process_name", _about(lambda process: process.name, frozenset(match.process_name))))
    if match.process_path:
        fields.append(("process_path", _about(lambda process: process.path, frozenset(match.process_path))))
    if match.process_path_regex:
        regexes = tuple(compile_regex(pattern) for pattern in match.process_path_regex)

        def path_matches(flow: Flow) -> bool:
            path = flow.process.path if flow.process is not None else ""
            return bool(path) and any(regex.search(path) for regex in regexes)

        fields.append(("process_path_regex", path_matches))
    if match.user:
        fields.append(("user", _about(lambda process: process.user, frozenset(match.user))))
    if match.user_id:
        fields.append(("user_id", _about(lambda process: process.uid, frozenset(match.user_id))))
    return tuple(fields)


def _about(fact: Callable[[ProcessInfo], object], wanted: frozenset[object]) -> Callable[[Flow], bool]:
    """Whether what is known of the process is one of `wanted`; what is not known (empty, None) never is."""
    known = wanted - {"", None}
    return lambda flow: flow.process is not None and fact(flow.process) in known

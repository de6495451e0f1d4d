"""The engine's values in the words of the Clash API. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from engine.flows import LiveFlow
from engine.requests import EngineStatus, LogLine, Measurement, OutboundStatus, RulesStatus
from shared.metrics import Cell

__all__ = [
    "GLOBAL",
    "configs",
    "connections",
    "log_level",
    "log_line",
    "memory",
    "proxies",
    "proxy",
    "rule_providers",
    "rules",
    "totals",
]

GLOBAL = "GLOBAL"
"""The group of everything that dashboards expect; here it shows where flows go that no rule takes."""
KINDS = {
    "socks5": "Socks5",
    "socks4": "Socks5",
    "http": "Http",
    "direct": "Direct",
    "block": "Reject",
    "selector": "Selector",
    "urltest": "URLTest",
    "fallback": "Fallback",
}


LOG_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error", "silent": "error"}
"""What sing-box and Clash call a level -> what it is here."""


def log_level(name: str) -> str:
    """Return a level of sing-box or Clash by its name here; what is none is returned as it is."""
    return LOG_LEVELS.get(name.lower(), name.lower())


def _stamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configs(status: EngineStatus) -> dict[str, Any]:
    """GET /configs."""
    return {
        "port": 0,
        "socks-port": 0,
        "redir-port": 0,
        "tproxy-port": 0,
        "mixed-port": 0,
        "allow-lan": False,
        "bind-address": "*",
        "mode": status.mode,
        "mode-list": status.modes,
        "modes": status.modes,
        "log-level": status.log_level,
        "ipv6": True,
        "tun": {"enable": True, "device": status.interface, "stack": "tunloom", "mtu": status.mtu},
    }


def proxy(outbound: OutboundStatus) -> dict[str, Any]:
    """One outbound."""
    history = []
    if outbound.tested_at is not None:
        history.append({"time": _stamp(outbound.tested_at), "delay": _milliseconds(outbound.delay)})
    value: dict[str, Any] = {
        "name": outbound.tag,
        "type": KINDS[outbound.kind],
        "udp": outbound.network != "tcp" and outbound.kind not in ("socks4", "http"),
        "alive": outbound.tested_at is None or outbound.delay is not None,
        "history": history,
    }
    if outbound.server:
        value["server"] = outbound.server
    if outbound.members:
        value["all"] = list(outbound.members)
        value["now"] = outbound.now or outbound.members[0]
    if outbound.url is not None:
        value["testUrl"] = outbound.url
    return value


def _milliseconds(seconds: float | None) -> int:
    """0: the test failed. What is quicker than a millisecond is no failure."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def proxies(outbounds: Sequence[OutboundStatus]) -> dict[str, dict[str, Any]]:
    """GET /proxies, by tag."""
    found = {outbound.tag: proxy(outbound) for outbound in outbounds}
    default = next((outbound.tag for outbound in outbounds if outbound.is_default), "")
    found.setdefault(
        GLOBAL,
        {
            "name": GLOBAL,
            "type": "Fallback",
            "udp": True,
            "alive": True,
            "history": [],
            "all": sorted(found, key=lambda tag: tag != default),
            "now": default,
        },
    )
    return found


def rules(status: RulesStatus) -> list[dict[str, Any]]:
    """GET /rules. The last one stands for the flows that no rule takes."""
    found: list[dict[str, Any]] = [
        {
            "index": index,
            "type": _camel(rule.fields[0]) if len(rule.fields) == 1 else "Default",
            "payload": rule.conditions,
            "proxy": rule.outbound or rule.action,
            "size": -1,
            "origin": rule.origin,
        }
        for index, rule in enumerate(status.rules)
    ]
    last = {"index": len(found), "type": "Match", "payload": "", "proxy": status.final, "size": -1, "origin": ""}
    return [*found, last]


def rule_providers(status: RulesStatus) -> dict[str, dict[str, Any]]:
    """GET /providers/rules, by tag: the rule-sets."""
    return {
        tag: {"name": tag, "type": "Rule", "vehicleType": "File", "behavior": "Classical", "ruleCount": count}
        for tag, count in status.rule_sets.items()
    }


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def totals(measurement: Measurement) -> tuple[int, int]:
    """Return the bytes of IP packets from applications and to them, since the start."""
    rows = memoryview(measurement.rows).cast("Q")
    workers = measurement.places
    up = rows[workers * measurement.cells + Cell.BYTES_IN]
    return up, sum(rows[worker * measurement.cells + Cell.BYTES_OUT] for worker in range(workers))


def memory(status: EngineStatus) -> int:
    """Return what all processes of the engine take, in bytes, as far as it is known."""
    sizes = (status.memory, status.http_memory, *(worker.memory for worker in status.workers))
    return sum(size for size in sizes if size is not None)


def connections(flows: Sequence[LiveFlow], measurement: Measurement) -> dict[str, Any]:
    """GET /connections."""
    up, down = totals(measurement)
    return {
        "downloadTotal": down,
        "uploadTotal": up,
        "memory": memory(measurement.status),
        "connections": [_connection(flow) for flow in flows],
    }


def _connection(flow: LiveFlow) -> dict[str, Any]:
    process = flow.process
    return {
        "id": flow.id,
        "metadata": {
            "network": flow.network,
            "type": "Tun",
            "sourceIP": flow.source,
            "sourcePort": str(flow.source_port),
            "destinationIP": flow.destination,
            "destinationPort": str(flow.destination_port),
            "host": flow.name or "",
            "sniffHost": "",
            "dnsMode": "normal",
            "process": process.name if process is not None else "",
            "processPath": process.path if process is not None else "",
            "uid": process.uid if process is not None and process.uid is not None else 0,
            "remoteDestination": flow.destination,
        },
        "upload": flow.up,
        "download": flow.down,
        "start": _stamp(flow.started_at),
        "chains": list(reversed(flow.chain)),  # where it leaves comes first
        "rule": flow.rule or "Match",
        "rulePayload": "",
    }


def log_line(line: LogLine, *, structured: bool) -> dict[str, Any]:
    """One message of /logs."""
    if structured:
        fields = [{"key": key, "value": value} for key, value in {"process": line.process, **line.fields}.items()]
        return {"time": _stamp(line.time), "level": line.level, "message": line.message, "fields": fields}
    return {"type": line.level, "payload": f"{line.process}: {line.message}"}

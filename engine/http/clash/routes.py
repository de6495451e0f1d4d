"""Paths of the Clash API. Statuses and messages are those that sing-box answers, as dashboards know them."""

import asyncio
from typing import Any, TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from engine.http.clash import streams, values
from engine.http.state import ENGINE
from engine.requests import (
    AskDns,
    Change,
    CloseFlows,
    Flush,
    FlushFakeNames,
    ListOutbounds,
    ListRules,
    OutboundStatus,
    Reload,
    Reply,
    Request,
    RulesStatus,
    Select,
    Status,
    TestDelay,
)
from shared.log import set_log_level

__all__ = ["add_routes"]

ASK_TIMEOUT = 10.0  # seconds
BODY_TIMEOUT = 10.0  # seconds for the body of a request to come
RELOAD_TIMEOUT = 90.0  # seconds; names of proxies are looked up
DELAY_URL = "https://www.gstatic.com/generate_204"
DELAY_TIMEOUT = 5000.0  # milliseconds
NOT_FOUND = "Resource not found"
_BY_COMMAND = "the engine is started and replaced on the command line"
_BY_CONFIGURATION = "rules are changed in the configuration: change it and reload the engine"
REFUSED = {
    ("POST", "/restart"): _BY_COMMAND,
    ("POST", "/upgrade"): _BY_COMMAND,
    ("POST", "/upgrade/ui"): "the files of the dashboard are yours to replace (external_ui)",
    ("POST", "/upgrade/geo"): "there are no databases: rule-sets take their place",
    ("POST", "/configs/geo"): "there are no databases: rule-sets take their place",
    ("PUT", "/providers/rules/{name}"): "rule-sets are fetched by engine fetch, and read by engine reload",
    ("PATCH", "/rules/disable"): _BY_CONFIGURATION,
    ("POST", "/script"): _BY_CONFIGURATION,
    ("PATCH", "/script"): _BY_CONFIGURATION,
    ("DELETE", "/proxies/{name}"): "a urltest group chooses by its tests alone",
    ("GET", "/profile/tracing"): "there is no tracing: engine explain and the log tell what becomes of a flow",
}
"""Of sing-box's and mihomo's API what does not exist here, and why: 501."""

T = TypeVar("T")


def add_routes(app: web.Application) -> None:
    """Serve the API."""
    streams.set_up(app)
    add = app.router
    add.add_get("/", _hello)
    add.add_get("/version", _version)
    add.add_get("/configs", _configs)
    add.add_put("/configs", _reload)
    add.add_patch("/configs", _change_configs)
    add.add_get("/proxies", _proxies)
    add.add_get("/proxies/{name:[^/]+}", _proxy)
    add.add_put("/proxies/{name:[^/]+}", _select)
    add.add_get("/proxies/{name:[^/]+}/delay", _delay)
    add.add_get("/group", _groups)
    add.add_get("/group/{name:[^/]+}", _proxy)
    add.add_get("/group/{name:[^/]+}/delay", _group_delay)
    add.add_get("/rules", _rules)
    add.add_get("/connections", streams.connections)
    add.add_delete("/connections", _close)
    add.add_delete("/connections/{id}", _close)
    add.add_get("/traffic", streams.traffic)
    add.add_get("/memory", streams.memory)
    add.add_get("/logs", streams.logs)
    add.add_get("/providers/proxies", _no_providers)
    add.add_get("/providers/proxies/{name:[^/]+}", _not_found)
    add.add_get("/providers/proxies/{name:[^/]+}/healthcheck", _not_found)
    add.add_get("/providers/rules", _rule_providers)
    add.add_get("/providers/rules/{name:[^/]+}", _rule_provider)
    add.add_get("/dns/query", _dns_query)
    add.add_post("/cache/dns/flush", _flush)
    add.add_post("/cache/fakeip/flush", _flush_fake_names)
    for (method, path), reason in REFUSED.items():
        add.add_route(method, path, _refusing(reason))


async def _ask(request: web.Request, question: Request, timeout: float = ASK_TIMEOUT) -> Reply:
    return await request.app[ENGINE].ask(question, timeout=timeout)


def _there(value: T | None) -> T:
    """What the master has answered; nothing is the answer of an engine that starts or stops."""
    if value is None:
        raise TimeoutError
    return value


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(body=msgspec.json.encode(value), status=status)


def _done(reply: Reply) -> web.Response:
    """204, or 400 with what is wrong."""
    return _json({"message": reply.error}, 400) if reply.error is not None else web.Response(status=204)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            text = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body does not come") from None
    try:
        return msgspec.json.decode(text or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        raise web.HTTPBadRequest(text="Body invalid") from None


async def _hello(request: web.Request) -> web.Response:
    return _json({"hello": "tunloom"})


async def _version(request: web.Request) -> web.Response:
    status = _there((await _ask(request, Status())).status)
    return _json({"meta": True, "premium": True, "version": f"tunloom {status.version}"})


async def _configs(request: web.Request) -> web.Response:
    return _json(values.configs(_there((await _ask(request, Status())).status)))


async def _reload(request: web.Request) -> web.Response:
    """Dashboards send `path` and `payload` along, empty; another configuration than the engine's own is refused."""
    body = await _body(request)
    if body.get("path") or body.get("payload"):
        return _json({"message": "the engine reads the files again that it was started with, and no others"}, 400)
    done = _there((await _ask(request, Reload(), RELOAD_TIMEOUT)).reloaded)
    return _json({"message": "; ".join(done.errors)}, 400) if done.errors else web.Response(status=204)


async def _change_configs(request: web.Request) -> web.Response:
    """Mode and log level can be changed; of the rest what is so already is not refused: dashboards send it along."""
    wanted = await _body(request)
    mode, level = wanted.pop("mode", None), wanted.pop("log-level", None)
    if not isinstance(mode, str | None) or not isinstance(level, str | None):
        return _json({"message": "Body invalid"}, 400)
    now = values.configs(_there((await _ask(request, Status())).status))
    refused = [name for name, value in wanted.items() if str(now.get(name)).lower() != str(value).lower()]
    if refused:
        return _json({"message": f"{', '.join(refused)}: change the configuration and reload the engine"}, 400)
    level = values.log_level(level) if level is not None else None
    done = await _ask(request, Change(mode or None, level), RELOAD_TIMEOUT)
    if level is not None and done.error is None:
        set_log_level(level)
    return _done(done)


async def _outbounds(request: web.Request) -> list[OutboundStatus]:
    return _there((await _ask(request, ListOutbounds())).outbounds)


async def _proxies(request: web.Request) -> web.Response:
    return _json({"proxies": values.proxies(await _outbounds(request))})


async def _groups(request: web.Request) -> web.Response:
    found = values.proxies(await _outbounds(request))
    return _json({"proxies": [proxy for proxy in found.values() if "all" in proxy]})


async def _one(request: web.Request) -> dict[str, Any]:
    found = values.proxies(await _outbounds(request)).get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound(text=NOT_FOUND)
    return found


async def _proxy(request: web.Request) -> web.Response:
    return _json(await _one(request))


async def _select(request: web.Request) -> web.Response:
    member = (await _body(request)).get("name")
    found = await _one(request)
    if found["type"] != "Selector":
        return _json({"message": "Must be a Selector"}, 400)
    if not isinstance(member, str):
        return _json({"message": "Body invalid"}, 400)
    return _done(await _ask(request, Select(found["name"], member)))


async def _test(request: web.Request, tag: str) -> tuple[int | None, str]:
    """Milliseconds, or why the test failed."""
    url = request.query.get("url") or DELAY_URL
    timeout = max(streams.number(request, "timeout", DELAY_TIMEOUT), 1.0) / 1000
    reply = await _ask(request, TestDelay(tag, url, timeout), timeout + ASK_TIMEOUT)
    done = _there(reply.delay)
    return (max(1, round(done.seconds * 1000)), "") if done.seconds is not None else (None, done.error)


async def _delay(request: web.Request) -> web.Response:
    found = await _one(request)
    tag = found["now"] if found["name"] == values.GLOBAL else found["name"]
    delay, error = await _test(request, tag)
    if delay is not None:
        return _json({"delay": delay})
    return _json({"message": f"An error occurred in the delay test: {error}"}, 503)


async def _group_delay(request: web.Request) -> web.Response:
    found = await _one(request)
    members = found.get("all")
    if members is None:
        raise web.HTTPNotFound(text=NOT_FOUND)
    tests = await asyncio.gather(*(_test(request, member) for member in members))
    delays = {member: delay for member, (delay, _) in zip(members, tests, strict=True) if delay is not None}
    return _json(delays) if delays else _json({"message": "Timeout"}, 504)


async def _rules_status(request: web.Request) -> RulesStatus:
    return _there((await _ask(request, ListRules())).rules)


async def _rules(request: web.Request) -> web.Response:
    return _json({"rules": values.rules(await _rules_status(request))})


async def _rule_providers(request: web.Request) -> web.Response:
    return _json({"providers": values.rule_providers(await _rules_status(request))})


async def _rule_provider(request: web.Request) -> web.Response:
    found = values.rule_providers(await _rules_status(request)).get(request.match_info["name"])
    return _json(found) if found is not None else await _not_found(request)


async def _not_found(request: web.Request) -> web.Response:
    return _json({"message": NOT_FOUND}, 404)


def _refusing(reason: str) -> Handler:
    async def refuse(request: web.Request) -> web.Response:
        return _json({"message": reason}, 501)

    return refuse


async def _no_providers(request: web.Request) -> web.Response:
    return _json({"providers": {}})


async def _close(request: web.Request) -> web.Response:
    return _done(await _ask(request, CloseFlows(request.match_info.get("id"))))


async def _flush(request: web.Request) -> web.Response:
    return _done(await _ask(request, Flush()))


async def _flush_fake_names(request: web.Request) -> web.Response:
    return _done(await _ask(request, FlushFakeNames()))


async def _dns_query(request: web.Request) -> web.Response:
    try:
        query = dns.message.make_query(request.query.get("name", ""), request.query.get("type") or "A")
    except (dns.exception.DNSException, ValueError) as error:
        return _json({"message": f"invalid query: {error}"}, 400)
    reply = await _ask(request, AskDns(query.to_wire()), ASK_TIMEOUT + 5)
    if reply.dns is None:
        return _json({"message": reply.error}, 503)
    answer = dns.message.from_wire(reply.dns)
    value: dict[str, Any] = {
        "Status": int(answer.rcode()),
        "Question": [
            {"Name": str(each.name), "Qtype": int(each.rdtype), "Qclass": int(each.rdclass)} for each in answer.question
        ],
        **{flag: bool(answer.flags & getattr(dns.flags, flag)) for flag in ("TC", "RD", "RA", "AD", "CD")},
        "Server": "internal",
    }
    for name, section in (
        ("Answer", answer.answer),
        ("Authority", answer.authority),
        ("Additional", answer.additional),
    ):
        records = [
            {"name": str(rrset.name), "type": int(rrset.rdtype), "TTL": rrset.ttl, "data": record.to_text()}
            for rrset in section
            for record in rrset
        ]
        if records:
            value[name] = records
    return _json(value)

"""engine/http/clash behind a real HTTP client: streams by websocket and as lines, and what is refused and why."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer

from engine.http.access import Access
from engine.http.channel import Closed
from engine.http.clash import streams
from engine.http.server import make_app
from engine.http.state import DOOR
from engine.requests import (
    Change,
    FlowsPart,
    FollowLog,
    ListFlows,
    ListOutbounds,
    ListRules,
    LogLine,
    LogPart,
    Measure,
    OutboundStatus,
    Reload,
    Reloaded,
    Reply,
    Request,
    RulesStatus,
    Select,
    Status,
)
from shared.control import FlowView, encode
from tests.engine.http.measurement import Rows, status
from tests.engine.http.test_server import FakeEngine
from tests.support.loop import on_loop, until

SECRET = {"token": "s3cret"}
STREAMS = ("/traffic", "/memory", "/logs", "/connections")


class Master:
    """Answers as an engine with one flow, a line of the log for each question, and outbounds of odd names."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.gone = False

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.gone:
            raise Closed
        match request:
            case Measure():
                return Reply(measurement=Rows().measure("proxy"))
            case Status():
                return Reply(status=status())
            case ListFlows():
                view = FlowView(id=1, network="tcp", source="10.0.0.1", source_port=4000, destination="192.0.2.1",
                                destination_port=443, name="a.example", started_at=0.0, chain=("choice", "one"))  # fmt: skip
                return Reply(flows=[FlowsPart(0, encode([view]))])
            case FollowLog():
                line = LogLine(
                    time=0.0, level=request.level, process="worker 0", message="said", fields={"flow": "0-1"}
                )
                return Reply(log=LogPart(next=request.after + 1, lines=[line]))
            case ListOutbounds():
                group = OutboundStatus(tag="a/b ü", kind="selector", is_default=True, members=("one",), now="one")
                return Reply(outbounds=[group, OutboundStatus(tag="one", kind="socks5", is_default=False)])
            case ListRules():
                return Reply(rules=RulesStatus(rules=[], final="one", rule_sets={"ads": 3}))
            case Reload():
                return Reply(reloaded=Reloaded())
            case _:
                return Reply(ok=True)


@asynccontextmanager
async def served(master: Master, secret: str = "s3cret") -> AsyncIterator[TestClient[Any, Any]]:
    app = make_app(FakeEngine(master.answer), Access(secret=secret))
    async with TestClient(TestServer(app)) as client:
        yield client


def running(client: TestClient[Any, Any]) -> int:
    assert client.app is not None
    return len(client.app[streams.STREAMS])


KEYS = {
    "/traffic": {"up", "down", "upTotal", "downTotal"},
    "/memory": {"inuse", "oslimit"},
    "/logs": {"type", "payload"},
    "/connections": {"connections", "downloadTotal", "uploadTotal", "memory"},
}


@pytest.mark.parametrize("path", STREAMS)
@on_loop
async def test_websocket_gives_messages_until_the_client_goes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "INTERVAL", 0.01)
    async with served(Master()) as client:
        with pytest.raises(WSServerHandshakeError, match="401"):
            await client.ws_connect(path)
        async with client.ws_connect(path, params=SECRET) as socket:
            for _ in range(3):
                message = await socket.receive_json()
                assert message.keys() == KEYS[path]
            await socket.send_str("what dashboards say means nothing")
            assert (await socket.receive_json()).keys() == KEYS[path]
            assert running(client) == 1
        await until(lambda: running(client) == 0)


@pytest.mark.parametrize("path", ["/traffic", "/memory", "/logs"])
@on_loop
async def test_lines_of_an_endless_response_until_the_client_goes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "INTERVAL", 0.01)
    async with served(Master()) as client:
        async with client.get(path) as response:
            assert response.status == 401
        response = await client.get(path, headers={"Authorization": "Bearer s3cret"})
        for _ in range(3):
            assert json.loads(await response.content.readline()).keys() == KEYS[path]
        assert running(client) == 1
        response.close()
        await until(lambda: running(client) == 0)


@on_loop
async def test_connections_are_one_object_over_http() -> None:
    async with served(Master(), secret="") as client, client.get("/connections") as response:
        (connection,) = (await response.json())["connections"]
        assert (connection["id"], connection["metadata"]["host"], connection["chains"]) == (
            "0-1", "a.example", ["one", "choice"],
        )  # fmt: skip


@pytest.mark.parametrize("path", STREAMS)
@on_loop
async def test_streams_end_when_the_engine_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "INTERVAL", 0.01)
    master = Master()
    async with served(master) as client, client.ws_connect(path, params=SECRET | {"interval": "100"}) as socket:
        await socket.receive_json()
        master.gone = True
        while (message := await socket.receive()).type is WSMsgType.TEXT:
            pass
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING)
        await until(lambda: running(client) == 0)


@on_loop
async def test_streams_are_bounded_and_those_of_connections_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAMS_MAX", 8)
    master = Master()
    async with served(master, secret="") as client:
        sockets = [await client.ws_connect("/connections") for _ in range(8)]
        await asyncio.gather(*(socket.receive_json() for socket in sockets))
        assert sum(isinstance(asked, ListFlows) for asked in master.asked) < 8
        with pytest.raises(WSServerHandshakeError, match="503"):
            await client.ws_connect("/traffic")
        assert client.app is not None
        assert client.app[DOOR].refused["streams"] == 1
        for socket in sockets:
            await socket.close()
        await until(lambda: running(client) == 0)


@pytest.mark.parametrize("query", ["interval=fast", "interval=nan", "interval=inf"])
@on_loop
async def test_an_interval_that_is_none_is_400(query: str) -> None:
    async with served(Master(), secret="") as client:
        with pytest.raises(WSServerHandshakeError, match="400"):
            await client.ws_connect(f"/connections?{query}")


@pytest.mark.parametrize(("level", "asked"), [("warn", "warning"), ("TRACE", "debug"), ("silent", "error")])
@on_loop
async def test_levels_of_sing_box_and_clash(level: str, asked: str) -> None:
    master = Master()
    async with served(master, secret="") as client:
        response = await client.get(f"/logs?level={level}&format=structured")
        line = json.loads(await response.content.readline())
        assert (line["level"], line["message"], line["fields"][1]) == (asked, "said", {"key": "flow", "value": "0-1"})
        response.close()
        async with client.patch("/configs", json={"log-level": level}) as response:
            assert response.status == 204
        assert Change(log_level=asked) in master.asked
        async with client.get("/logs?level=loud") as response:
            assert response.status == 400


@on_loop
async def test_tags_of_any_characters() -> None:
    master = Master()
    async with served(master, secret="") as client:
        async with client.get("/proxies/a%2Fb%20%C3%BC") as response:
            assert (response.status, (await response.json())["now"]) == (200, "one")
        async with client.put("/proxies/a%2Fb%20%C3%BC", json={"name": "one"}) as response:
            assert response.status == 204
        assert Select("a/b ü", "one") in master.asked


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/providers/proxies/x", 404),
        ("GET", "/providers/proxies/x/healthcheck", 404),
        ("GET", "/providers/rules/x", 404),
        ("PUT", "/providers/rules/ads", 501),
        ("POST", "/restart", 501),
        ("POST", "/upgrade/ui", 501),
        ("PATCH", "/rules/disable", 501),
        ("DELETE", "/proxies/one", 501),
        ("GET", "/profile/tracing", 501),
        ("GET", "/proxies/one/delay?timeout=soon", 400),
        ("PATCH", "/configs", 400),
        ("PUT", "/proxies/one", 400),
        ("GET", "/storage/x", 404),
    ],
)
@on_loop
async def test_what_there_is_not_is_said(method: str, path: str, code: int) -> None:
    async with served(Master(), secret="") as client, client.request(method, path, data=b"[]") as response:
        assert response.status == code
        assert (await response.json())["message"]


@on_loop
async def test_the_engines_own_configuration_is_read_again_and_no_other() -> None:
    master = Master()
    async with served(master, secret="") as client:
        for body in ({}, {"path": "", "payload": ""}):
            async with client.put("/configs?force=true", json=body) as response:
                assert response.status == 204
        for body in ({"path": "/etc/passwd"}, {"payload": "port: 1"}):
            async with client.put("/configs", json=body) as response:
                assert response.status == 400
        assert master.asked == [Reload()] * 2


@on_loop
async def test_rule_sets_are_providers() -> None:
    async with served(Master(), secret="") as client:
        async with client.get("/providers/rules/ads") as response:
            assert (await response.json())["ruleCount"] == 3
        async with client.get("/providers/proxies") as response:
            assert await response.json() == {"providers": {}}

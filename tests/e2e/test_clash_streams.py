"""Streams of the Clash API of a running engine, over websockets with a secret: what is in them, and that they end."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest

from tests.e2e.test_clash_api import CONFIG
from tests.support.engine import running_engine
from tests.support.http import metrics
from tests.support.netns import TARGET_V4, Topology, topology, wait_until
from tests.support.sockets import flow, listening, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

URL = "http://127.0.0.1:9464"
AUTHORIZATION = {"Authorization": "Bearer s3cret"}
SIZE = 1_000_000


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    folder = tmp_path_factory.mktemp("streams")
    # Written by the configuration, so that the secret is in no environment.
    clash_api = {"external_controller": "127.0.0.1:9464", "secret": "s3cret"}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"experimental": {"clash_api": clash_api}}))
    (folder / "config.json").chmod(0o600)
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        stack.enter_context(embedded(net.internet))
        stack.enter_context(running_engine(net.client, folder / "run", "-c", str(folder / "config.json")))
        yield net


async def first(session: aiohttp.ClientSession, path: str, wanted: Any, ready: asyncio.Event) -> dict[str, Any]:
    """Return the first message of a stream for which `wanted` holds; `ready` is set when the stream runs."""
    async with session.ws_connect(f"{URL}{path}") as socket:
        ready.set()
        while True:
            message: dict[str, Any] = await socket.receive_json()
            if wanted(message):
                return message


def connections(net: Topology) -> float:
    return metrics(net.client, **AUTHORIZATION)["tunloom_http_connections"]


def test_streams_tell_what_happens(net: Topology) -> None:
    async def look() -> list[dict[str, Any]]:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            with listening(net, TARGET_V4) as server:
                app, peer = flow(net, server)
                with app, peer:
                    port = app.getsockname()[1]

                    def is_here(each: dict[str, Any]) -> bool:
                        return any(c["metadata"]["sourcePort"] == str(port) for c in each["connections"])

                    wanted = {
                        "/traffic?token=s3cret": lambda each: each["upTotal"] > SIZE,
                        "/memory?token=s3cret": lambda each: each["inuse"] > 1e6,
                        "/connections?token=s3cret&interval=200": is_here,
                        "/logs?token=s3cret&level=info": lambda each: (
                            f"{TARGET_V4}:" in each["payload"] and "closed after" in each["payload"]
                        ),
                    }
                    events = {path: asyncio.Event() for path in wanted}
                    tasks = [
                        asyncio.ensure_future(first(session, path, holds, events[path]))
                        for path, holds in wanted.items()
                    ]
                    await asyncio.gather(*(event.wait() for event in events.values()))
                    await asyncio.to_thread(app.sendall, bytes(2 * SIZE))
                    await asyncio.to_thread(receive, peer, 2 * SIZE)
                    found = await asyncio.gather(*tasks[:3])
                while not tasks[3].done():  # the log may be followed a moment later than the websocket is open
                    for end in flow(net, server):
                        end.close()
                    await asyncio.sleep(0.1)
            return [*found, await tasks[3]]

    with net.client.entered():
        traffic, memory, live, line = asyncio.run(look())
    assert (traffic["upTotal"] > SIZE, memory["oslimit"], live["uploadTotal"] > 0) == (True, 0, True)
    assert line["type"] == "info"
    wait_until(lambda: connections(net) <= 1, timeout=60, what="the end of the streams")


def test_without_the_secret_there_is_no_stream(net: Topology) -> None:
    async def look() -> None:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            for path in ("/traffic", "/memory?token=wrong", "/logs", "/connections?token="):
                with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                    await session.ws_connect(f"{URL}{path}")

    with net.client.entered():
        asyncio.run(look())

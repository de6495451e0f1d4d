"""What changes by the second: answered once, or again and again over a websocket, or as lines of a response without end."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import WSCloseCode, hdrs, web

from engine.flows import live_flows
from engine.http.channel import Closed, Engine
from engine.http.clash import values
from engine.http.door import SEND_TIMEOUT
from engine.http.latest import Latest
from engine.http.state import DOOR, ENGINE
from engine.requests import FollowLog, ListFlows, Measure, Measurement
from shared.log import LEVELS

__all__ = ["connections", "logs", "memory", "number", "set_up", "traffic"]

INTERVAL = 1.0  # seconds
INTERVAL_MIN = 0.1
STREAMS_MAX = 64
"""Streams at a time; one more is refused."""
ASK_TIMEOUT = 10.0  # seconds
RECEIVED_MAX = 4096
"""Bytes of a websocket's message to us: dashboards send none."""
LOG_TIMEOUT = 20.0  # seconds; the master waits ten for a line
STREAMS: web.AppKey[set[object]] = web.AppKey("streams", set)
CONNECTIONS: web.AppKey[Latest[bytes]] = web.AppKey("connections", Latest)

_encode = msgspec.json.encode


async def measured(engine: Engine) -> Measurement:
    """Ask for all counters. Raises TimeoutError, Closed."""
    reply = await engine.ask(Measure(), timeout=ASK_TIMEOUT)
    if reply.measurement is None:
        raise Closed
    return reply.measurement


async def traffic(request: web.Request) -> web.StreamResponse:
    """GET /traffic: bytes of the last second, and in all."""
    engine = request.app[ENGINE]

    async def messages() -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        at, (up, down) = loop.time(), values.totals(await measured(engine))
        yield {"up": 0, "down": 0, "upTotal": up, "downTotal": down}
        while True:
            await asyncio.sleep(INTERVAL)
            now, (more_up, more_down) = loop.time(), values.totals(await measured(engine))
            yield {
                "up": round((more_up - up) / (now - at)),
                "down": round((more_down - down) / (now - at)),
                "upTotal": more_up,
                "downTotal": more_down,
            }
            at, up, down = now, more_up, more_down

    return await _stream(request, messages())


async def memory(request: web.Request) -> web.StreamResponse:
    """GET /memory: what the engine takes."""
    engine = request.app[ENGINE]

    async def messages() -> AsyncIterator[Any]:
        yield {"inuse": 0, "oslimit": 0}  # dashboards take the first one for nothing
        while True:
            yield {"inuse": values.memory((await measured(engine)).status), "oslimit": 0}
            await asyncio.sleep(INTERVAL)

    return await _stream(request, messages())


def set_up(app: web.Application) -> None:
    """Give an application what its streams share."""
    engine = app[ENGINE]
    app[STREAMS] = set()
    app[CONNECTIONS] = Latest(lambda: _connections_now(engine), INTERVAL_MIN)


async def _connections_now(engine: Engine) -> bytes:
    flows = (await engine.ask(ListFlows(), timeout=ASK_TIMEOUT)).flows or ()
    return _encode(values.connections(live_flows(flows), await measured(engine)))


async def connections(request: web.Request) -> web.StreamResponse:
    """GET /connections: all live flows; over a websocket again every `interval` milliseconds."""
    if not _is_websocket(request):
        return web.json_response(body=await _connections_now(request.app[ENGINE]))
    interval = max(number(request, "interval", INTERVAL * 1000) / 1000, INTERVAL_MIN)
    latest = request.app[CONNECTIONS]

    async def messages() -> AsyncIterator[Any]:
        while True:
            yield msgspec.Raw(await latest.get())
            await asyncio.sleep(interval)

    return await _stream(request, messages())


async def logs(request: web.Request) -> web.StreamResponse:
    """GET /logs: lines from `level` on as they come."""
    engine = request.app[ENGINE]
    level = values.log_level(request.query.get("level", "info"))
    if level not in LEVELS:
        raise web.HTTPBadRequest(text=f"there is no level {level}, but {', '.join(LEVELS)}")
    structured = request.query.get("format") == "structured"

    async def messages() -> AsyncIterator[Any]:
        after = 0
        while True:
            part = (await engine.ask(FollowLog(level, after), timeout=LOG_TIMEOUT)).log
            if part is None:
                raise Closed
            after = part.next
            if part.lost:
                yield {"type": "warning", "payload": f"{part.lost} lines are missing here: too many came"}
            for line in part.lines:
                yield values.log_line(line, structured=structured)

    return await _stream(request, messages())


def number(request: web.Request, name: str, default: float) -> float:
    """Return a number of the query. Raises HTTPBadRequest."""
    try:
        found = float(request.query.get(name, default))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise web.HTTPBadRequest(text=f"{name} is no number")
    return found


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def _stream(request: web.Request, messages: AsyncIterator[Any]) -> web.StreamResponse:
    """Send every message until the other side is gone."""
    running = request.app[STREAMS]
    if len(running) >= STREAMS_MAX:
        request.app[DOOR].refused["streams"] += 1
        raise web.HTTPServiceUnavailable(text=f"there are {STREAMS_MAX} streams already")
    running.add(messages)
    try:
        if _is_websocket(request):
            return await _over_websocket(request, messages)
        return await _as_lines(request, messages)
    finally:
        running.discard(messages)


async def _over_websocket(request: web.Request, messages: AsyncIterator[Any]) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(heartbeat=30.0, compress=False, max_msg_size=RECEIVED_MAX)
    await socket.prepare(request)

    async def send(message: bytes) -> None:
        await socket.send_str(message.decode())

    sending = asyncio.ensure_future(_send_all(request, send, messages))
    receiving = asyncio.ensure_future(_receive_all(socket))
    try:
        # Either may end: there are no more messages, as the engine is gone, or the reader is.
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, receiving):
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, TimeoutError, Closed):
                await task
        with suppress(ConnectionError):
            await socket.close(code=WSCloseCode.GOING_AWAY)
    return socket


async def _receive_all(socket: web.WebSocketResponse) -> None:
    """Wait for the end. What dashboards send means nothing."""
    async for _ in socket:
        pass


async def _send_all(
    request: web.Request, send: Callable[[bytes], Awaitable[None]], messages: AsyncIterator[Any]
) -> None:
    """Send every message. A reader that does not take one within SEND_TIMEOUT is given up."""
    async for message in messages:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(_encode(message))
        except TimeoutError:
            request.app[DOOR].refused["slow"] += 1
            if request.transport is not None:
                request.transport.abort()
            return


async def _as_lines(request: web.Request, messages: AsyncIterator[Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/json"})
    await response.prepare(request)

    async def send(message: bytes) -> None:
        await response.write(message + b"\n")

    with suppress(ConnectionError, TimeoutError, Closed):
        await _send_all(request, send, messages)
    return response

"""What changes by the second: answered once, or again and again over a websocket, or as lines of a response without end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import hdrs, web

from engine.flows import live_flows
from engine.http.channel import Closed, Engine
from engine.http.clash import values
from engine.http.state import ENGINE
from engine.requests import FollowLog, ListFlows, Measure, Measurement

__all__ = ["connections", "logs", "memory", "traffic"]

INTERVAL = 1.0  # seconds
INTERVAL_MIN = 0.1
STREAMS_MAX = 64
"""Streams at a time; one more is refused."""
ASK_TIMEOUT = 10.0  # seconds
LOG_TIMEOUT = 20.0  # seconds; the master waits ten for a line
STREAMS: web.AppKey[set[object]] = web.AppKey("streams", set)

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


async def connections(request: web.Request) -> web.StreamResponse:
    """GET /connections: all live flows; over a websocket again every `interval` milliseconds."""
    engine = request.app[ENGINE]

    async def now() -> Any:
        flows = (await engine.ask(ListFlows(), timeout=ASK_TIMEOUT)).flows or ()
        return values.connections(live_flows(flows), await measured(engine))

    if not _is_websocket(request):
        return web.json_response(body=_encode(await now()))
    interval = max(_number(request, "interval", INTERVAL * 1000) / 1000, INTERVAL_MIN)

    async def messages() -> AsyncIterator[Any]:
        while True:
            yield await now()
            await asyncio.sleep(interval)

    return await _stream(request, messages())


async def logs(request: web.Request) -> web.StreamResponse:
    """GET /logs: lines from `level` on as they come."""
    engine = request.app[ENGINE]
    level = request.query.get("level", "info")
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


def _number(request: web.Request, name: str, default: float) -> float:
    try:
        return float(request.query.get(name, default))
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} is no number") from None


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def _stream(request: web.Request, messages: AsyncIterator[Any]) -> web.StreamResponse:
    """Send every message until the other side is gone."""
    running = request.app[STREAMS]
    if len(running) >= STREAMS_MAX:
        raise web.HTTPServiceUnavailable(text=f"there are {STREAMS_MAX} streams already")
    running.add(messages)
    try:
        if _is_websocket(request):
            return await _over_websocket(request, messages)
        return await _as_lines(request, messages)
    finally:
        running.discard(messages)


async def _over_websocket(request: web.Request, messages: AsyncIterator[Any]) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(heartbeat=30.0, compress=False)
    await socket.prepare(request)
    sending = asyncio.ensure_future(_send_all(socket.send_str, messages))
    try:
        async for _ in socket:  # what dashboards send means nothing; the end of it is the end
            pass
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, ConnectionError, TimeoutError, Closed):
            await sending
        await socket.close()
    return socket


async def _send_all(send: Callable[[str], Awaitable[None]], messages: AsyncIterator[Any]) -> None:
    async for message in messages:
        await send(_encode(message).decode())


async def _as_lines(request: web.Request, messages: AsyncIterator[Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/json"})
    await response.prepare(request)
    with suppress(ConnectionError, TimeoutError, Closed):
        async for message in messages:
            await response.write(_encode(message) + b"\n")
    return response

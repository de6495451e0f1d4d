"""The HTTP process: who asks is checked (access.py), and routes answer out of what the master tells (channel.py).

GET /metrics    Prometheus text, or OpenMetrics by negotiation
GET /healthz    200 when packets can flow, else 503 with the reasons
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvloop
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from engine.http.access import Access, Refused
from engine.http.channel import Channel, Closed, Configure, Engine, receive_configuration
from engine.http.clash.routes import add_routes
from engine.http.confinement import confine_http
from engine.http.door import IDLE_TIMEOUT, Door
from engine.http.health import healthz
from engine.http.prometheus import metrics
from engine.http.state import DOOR, ENGINE
from shared.log import configure_logging
from shared.system import drop_privileges

__all__ = ["make_app", "run"]

log = logging.getLogger(__name__)

BODY_MAX = 64 * 1024
SHUTDOWN_TIMEOUT = 1.0  # seconds that open requests get when the engine stops
PREFLIGHT_MAX_AGE = "600"  # seconds for which a browser need not ask again (Fetch standard, 4.8)
UI = "/ui/"
PRIVATE_NETWORK = "Access-Control-Request-Private-Network"


def run(master_pid: int, channel_fd: int, listener_fds: Sequence[int]) -> int:
    """Serve until the master closes the channel; returns the exit code."""
    # Whoever stops the engine signals its whole group, or everything in its cgroup; the master decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    listeners = [socket.socket(fileno=fd) for fd in listener_fds]
    channel = socket.socket(fileno=channel_fd)
    try:
        config = receive_configuration(channel)
    except Closed:  # the engine has stopped already
        return 0
    configure_logging(config.log_level, "json" if config.log_format == "json" else "text", name="http")
    try:
        drop_privileges(config.uid)
    except OSError as error:
        log.error("the HTTP process cannot become uid %s: %s", config.uid, error.strerror)
        return 1
    if os.getppid() != master_pid:  # it died before PR_SET_PDEATHSIG was in force
        return 1
    ui = Path(config.ui) if config.ui is not None else None
    if ui is not None and not os.access(ui / "index.html", os.R_OK):
        log.error("external_ui: user %s cannot read %s: no dashboard is served", config.uid, ui / "index.html")
        ui = None
    try:
        # Before there is a loop: libuv aborts when it may not go on with the io_uring that it has.
        confine_http(ui)
    except OSError as error:
        log.error("the HTTP process cannot be confined (%s: %s)", error.filename, error.strerror)
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, channel, listeners, ui))
    return 0


async def _serve(
    config: Configure, channel_socket: socket.socket, listeners: Sequence[socket.socket], ui: Path | None
) -> None:
    engine = Engine(await Channel.open(channel_socket))
    access = Access(secret=config.secret, origins=config.origins, names=config.names)
    app = make_app(engine, access, ui)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT, keepalive_timeout=IDLE_TIMEOUT)
    await runner.setup()
    assert runner.server is not None, "it is set up"
    accepting = asyncio.ensure_future(app[DOOR].run(runner.server, listeners))
    asking = asyncio.ensure_future(engine.run())
    gc.collect()
    gc.freeze()
    await asyncio.wait((accepting, asking), return_when=asyncio.FIRST_COMPLETED)
    if accepting.done():
        accepting.result()  # raises: the master starts another process
    accepting.cancel()
    await runner.cleanup()


def make_app(engine: Engine, access: Access, ui: Path | None = None) -> web.Application:
    """Return the application: all routes, behind the checks of `access`; `ui`: directory of a dashboard."""
    door = Door()
    app = web.Application(middlewares=[door.watch, _guard(access), _failures, door.ration], client_max_size=BODY_MAX)
    app[ENGINE] = engine
    app[DOOR] = door
    app.on_response_prepare.append(_sign)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    add_routes(app)
    if ui is not None:
        _serve_ui(app, ui)
    return app


def _serve_ui(app: web.Application, ui: Path) -> None:
    """Serve the files of a dashboard. A browser loads them before anybody has typed a secret, so none is asked for."""

    async def index(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(ui / "index.html")

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(UI)

    app.router.add_get(UI, index)
    app.router.add_get(UI.rstrip("/"), redirect)
    app.router.add_static(UI, ui)


def _guard(access: Access) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check who asks, answer preflight requests, and tell browsers whose pages may read the answer."""
        host, origin = request.headers.get(hdrs.HOST), request.headers.get(hdrs.ORIGIN)
        refused = access.check_source(host, origin)
        if refused is not None:
            return _refusal(refused)
        cors: dict[str, str] = (
            {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, hdrs.VARY: hdrs.ORIGIN} if origin is not None else {}
        )
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers=cors | _preflight(request))
        if request.path.startswith(UI) or request.path == UI.rstrip("/"):
            return await handler(request)
        refused = access.check_secret(request.headers.get(hdrs.AUTHORIZATION), request.query.get("token"))
        response = await handler(request) if refused is None else _refusal(refused)
        if not response.prepared:
            response.headers.update(cors)
        return response

    return guard


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = "tunloom"  # instead of the versions of Python and aiohttp


def _preflight(request: web.Request) -> dict[str, str]:
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, PATCH, DELETE",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
        hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_MAX_AGE,
    }
    if PRIVATE_NETWORK in request.headers:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


def _refusal(refused: Refused) -> web.Response:
    response = web.json_response({"message": refused.reason}, status=refused.status)
    if refused.status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return response


@web.middleware
async def _failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what can go wrong into an answer: the Clash API's `{"message": ...}`."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return web.json_response({"message": error.text or error.reason}, status=error.status, headers=_allow(error))
    except (TimeoutError, Closed):
        return web.json_response({"message": "the engine does not answer"}, status=503)
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("%s %s", request.method, request.path)
        return web.json_response({"message": "a defect of the engine; its log tells more"}, status=500)


def _allow(error: web.HTTPException) -> dict[str, str]:
    return {hdrs.ALLOW: error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}

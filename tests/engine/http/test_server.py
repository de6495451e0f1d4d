"""engine/http/server.py: the application behind a real HTTP client, with the checks that stand before every route."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp.test_utils import TestClient, TestServer

from engine.http.access import Access
from engine.http.channel import Closed, Engine
from engine.http.server import make_app
from engine.requests import Measure, Reply, Request
from tests.engine.http.measurement import Rows
from tests.support.loop import on_loop

Answer = Callable[[Request], Reply]


class FakeEngine(Engine):
    """A master that answers at once with what the test says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ask(self, request: Request, *, timeout: float) -> Reply:
        return self._answer(request)


def healthy(request: Request) -> Reply:
    assert isinstance(request, Measure)
    return Reply(measurement=Rows().measure("proxy"))


@asynccontextmanager
async def served(answer: Answer = healthy, access: Access | None = None) -> AsyncIterator[TestClient]:
    app = make_app(FakeEngine(answer), access or Access(secret=""))
    async with TestClient(TestServer(app)) as client:
        yield client


@on_loop
async def test_text_and_openmetrics_by_negotiation() -> None:
    async with served() as client:
        plain = "text/plain; version=0.0.4; charset=utf-8"
        openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
        prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        for accept, content_type in {"": plain, "*/*": plain, prometheus: openmetrics}.items():
            async with client.get("/metrics", headers={"Accept": accept}) as response:
                text = await response.text()
                assert (response.status, response.headers["Content-Type"]) == (200, content_type)
                assert 'tunloom_worker_up{worker="1"} 1.0' in text
                assert text.endswith("# EOF\n") == ("openmetrics" in content_type)


@on_loop
async def test_healthz_tells_the_reasons() -> None:
    async with served() as client, client.get("/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})

    def down(request: Request) -> Reply:
        return Reply(measurement=Rows().measure(link_up=False))

    async with served(down) as client, client.get("/healthz") as response:
        assert response.status == 503
        assert await response.json() == {"status": "unavailable", "reasons": ["the interface tun0 is down"]}


@pytest.mark.parametrize("failure", [TimeoutError, Closed])
@on_loop
async def test_master_that_does_not_answer_is_503(failure: type[Exception]) -> None:
    def fail(request: Request) -> Reply:
        raise failure

    async with served(fail) as client:
        for path in ("/metrics", "/healthz"):
            async with client.get(path) as response:
                assert response.status == 503, path
                assert response.content_type == "application/json"


@on_loop
async def test_defect_is_500_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: Request) -> Reply:
        raise ZeroDivisionError("secret detail")

    async with served(fail) as client, client.get("/metrics") as response:
        assert response.status == 500
        assert "secret detail" not in await response.text()
    assert "ZeroDivisionError" in caplog.text


@on_loop
async def test_unknown_paths_and_methods() -> None:
    async with served() as client:
        async with client.get("/nothing") as response:
            assert (response.status, response.content_type) == (404, "application/json")
        async with client.post("/metrics") as response:
            assert response.status == 405
            assert response.headers["Allow"] == "GET,HEAD"


@on_loop
async def test_foreign_host_and_origin_are_refused_before_anything_else() -> None:
    async with served() as client:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            for method in ("GET", "OPTIONS", "POST"):
                async with client.request(method, "/metrics", headers=headers) as response:
                    assert response.status == 403, (headers, method)
                    assert "Access-Control-Allow-Origin" not in response.headers
                    assert "tunloom_" not in await response.text()


@on_loop
async def test_page_that_may_ask_is_told_so() -> None:
    async with served() as client:
        origin = {"Origin": "http://localhost:3000"}
        async with client.get("/healthz", headers=origin) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
            assert response.headers["Vary"] == "Origin"
        asked = origin | {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Private-Network": "true"}
        async with client.options("/proxies/x", headers=asked) as response:
            assert response.status == 204
            assert "PUT" in response.headers["Access-Control-Allow-Methods"]
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
            assert response.headers["Access-Control-Allow-Private-Network"] == "true"


@on_loop
async def test_secret_is_asked_for_on_every_route_but_preflights() -> None:
    async with served(access=Access(secret="s3cret")) as client:
        for path in ("/metrics", "/healthz", "/nothing"):
            async with client.get(path) as response:
                assert response.status == 401, path
                assert response.headers["WWW-Authenticate"] == "Bearer"
            async with client.get(path, headers={"Authorization": "Bearer wrong"}) as response:
                assert response.status == 401, path
        async with client.get("/healthz", headers={"Authorization": "Bearer s3cret"}) as response:
            assert response.status == 200
        async with client.get("/healthz?token=s3cret") as response:
            assert response.status == 200
        async with client.options("/healthz", headers={"Origin": "http://localhost"}) as response:
            assert response.status == 204, "a browser sends no secret before it may"


@on_loop
async def test_what_runs_is_not_told() -> None:
    async with served() as client, client.get("/healthz") as response:
        assert response.headers["Server"] == "tunloom"


@on_loop
async def test_many_scrapes_at_once() -> None:
    async with served() as client:

        async def scrape() -> int:
            async with client.get("/metrics") as response:
                await response.read()
                return response.status

        assert set(await asyncio.gather(*(scrape() for _ in range(50)))) == {200}

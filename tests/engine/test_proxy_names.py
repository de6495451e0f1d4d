"""engine/proxy_names.py: when a proxy that is named by name has moved, and what becomes of it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from engine import proxy_names
from engine.config.model import EngineConfig
from engine.config.named_proxy import for_proxy
from engine.proxy_names import ProxyNames, moved
from shared.config import ProxyConfig
from shared.control import LookedUp

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


@pytest.mark.parametrize(
    ("before", "now", "in_peace", "while_failing"),
    [
        ((A,), (A,), False, False),
        ((A,), (B,), True, True),
        ((A,), (), False, False),
        ((A, B), (B,), False, False),
        ((A, B), (B, C), False, True),
        ((A,), (A, B), False, True),
        ((), (A,), True, True),
    ],
)
def test_moved(before: tuple[str, ...], now: tuple[str, ...], in_peace: bool, while_failing: bool) -> None:
    assert moved(before, now, is_failing=False) is in_peace
    assert moved(before, now, is_failing=True) is while_failing


class Bed:
    """ProxyNames of a proxy `host`, whose name has the addresses `now`."""

    def __init__(self, host: str, *addresses: str) -> None:
        self.proxy = ProxyConfig("socks5", host, 1080, addresses=addresses)
        self.now: tuple[str, ...] = addresses
        self.asked: list[str] = []
        self.changed = asyncio.Event()
        self.moves: list[dict[str, tuple[str, ...]]] = []
        self.names = ProxyNames(self.config, self.look_up, self.move)

    def config(self) -> EngineConfig:
        return for_proxy(self.proxy)

    async def look_up(self, name: str, timeout: float) -> LookedUp:
        self.asked.append(name)
        self.changed.set()
        return LookedUp(0, self.now, "" if self.now else "nobody answers")

    async def move(self, found: Mapping[str, tuple[str, ...]]) -> list[str]:
        self.moves.append(dict(found))
        self.changed.set()
        return []

    async def fails(self) -> None:
        """A worker says that the proxy fails; return when the name was looked up."""
        before = len(self.asked)
        self.names.on_failing()
        await self.until(lambda: len(self.asked) > before)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something was asked or moved."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()


def run(body: Callable[[Bed], Coroutine[Any, Any, None]], host: str = "proxy.example") -> None:
    async def session() -> None:
        bed = Bed(host, A)
        try:
            await body(bed)
        finally:
            await bed.names.close()

    asyncio.run(session())


def test_failure_has_the_name_looked_up_and_the_proxy_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_names, "FAILING_INTERVAL", 0.0)

    async def body(bed: Bed) -> None:
        await bed.fails()
        assert bed.moves == []
        bed.now = (B,)
        await bed.fails()
        await bed.until(lambda: bool(bed.moves))
        assert bed.moves[-1] == {"proxy.example": (B,)}

    run(body)


def test_name_is_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_names, "CHECK_INTERVAL", 0.001)

    async def body(bed: Bed) -> None:
        bed.now = ()
        await bed.until(lambda: len(bed.asked) >= 3)
        assert bed.moves == []

    run(body)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "localhost"])
def test_address_is_not_looked_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_names, "CHECK_INTERVAL", 0.0)

    async def body(bed: Bed) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert bed.asked == []

    run(body, host)

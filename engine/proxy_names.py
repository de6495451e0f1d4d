"""Proxies that the user names by name: their addresses are looked up again, and followed when they have moved.

now and then, and when a worker says that a proxy fails
  -> a worker looks the name up, past all proxies (the one that fails among them)
  -> other addresses: they bypass the tun, and new flows go there (Reloader.move)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address

from engine.config.model import EngineConfig
from shared.config import ProxyOutbound
from shared.control import LookedUp

__all__ = ["CHECK_INTERVAL", "FAILING_INTERVAL", "ProxyNames", "moved"]

log = logging.getLogger(__name__)

CHECK_INTERVAL = 60.0
"""Seconds between two look-ups of all names."""
FAILING_INTERVAL = 5.0
"""The same while a proxy fails."""
LOOK_UP_TIMEOUT = 10.0  # seconds

LookUp = Callable[[str, float], Awaitable[LookedUp]]
Move = Callable[[Mapping[str, tuple[str, ...]]], Awaitable[list[str]]]


class ProxyNames:
    """`config` gives the configuration in force; `look_up` and `move` are those of Answers and Reloader."""

    def __init__(self, config: Callable[[], EngineConfig], look_up: LookUp, move: Move) -> None:
        self._config = config
        self._look_up = look_up
        self._move = move
        self._is_failing = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._check_for_ever(), name="proxy names")

    async def close(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def on_failing(self) -> None:
        """A worker cannot use a proxy."""
        self._is_failing.set()

    async def _check_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._is_failing.wait()
            except TimeoutError:
                pass
            is_failing = self._is_failing.is_set()
            self._is_failing.clear()  # before the look-up: a proxy that fails from now on may move while it is under way
            await self._check(is_failing=is_failing)
            if is_failing:
                await asyncio.sleep(FAILING_INTERVAL)

    async def _check(self, *, is_failing: bool) -> None:
        """Look all names up, and follow those that have moved."""
        names = _named_proxies(self._config())
        answers = await asyncio.gather(*(self._look_up(name, LOOK_UP_TIMEOUT) for name in names))
        found = {
            name: answer.addresses
            for (name, before), answer in zip(names.items(), answers, strict=True)
            if moved(before, answer.addresses, is_failing=is_failing)
        }
        for error in filter(None, (answer.error for answer in answers)):
            log.debug("%s", error)
        if not found:
            return
        errors = await self._move(found)
        for name, addresses in found.items():
            if errors:
                log.error(
                    "the proxy %s has moved to %s, but cannot be followed: %s", name, ", ".join(addresses), errors[0]
                )
            else:
                log.warning("the proxy %s has moved to %s: new flows go there", name, ", ".join(addresses))


def _named_proxies(config: EngineConfig) -> dict[str, tuple[str, ...]]:
    """Return the names of proxies, with the addresses that they are known by."""
    proxies = (outbound.proxy for outbound in config.policy.outbounds if isinstance(outbound, ProxyOutbound))
    return {
        proxy.host: proxy.addresses for proxy in proxies if proxy.host != "localhost" and not _is_address(proxy.host)
    }


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def moved(before: tuple[str, ...], now: tuple[str, ...], *, is_failing: bool) -> bool:
    """Tell whether a proxy is to be followed: of many addresses a name may show some, others each time, and all work."""
    if not now:
        return False
    return not set(now) <= set(before) if is_failing else set(now).isdisjoint(before)

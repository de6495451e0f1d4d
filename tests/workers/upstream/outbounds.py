"""Outbounds for tests of what stands above them: one whose attempts end as a test says, and the surroundings of real ones."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from shared.config import Resolve
from shared.metrics import CELLS
from workers.upstream import Leg, LegOwner, Trail, UpstreamError
from workers.upstream.build import Surroundings

__all__ = ["Scripted", "surroundings"]


class Scripted:
    """Raises `error`, or gives one end of a socket pair and keeps the other in `far`.

    If there is an event `answers_after`, it waits for that.
    """

    kind = "scripted"
    cells = 0

    def __init__(self, tag: str, *, networks: tuple[str, ...] = ("tcp", "udp")) -> None:
        self.tag = tag
        self.networks = networks
        self.error: UpstreamError | None = None
        self.attempts = 0
        self.far: list[socket.socket] = []
        self.answers_after: asyncio.Event | None = None
        self.closed = False

    def carries(self, network: str) -> bool:
        return network in self.networks

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        trail.append(self)
        self.attempts += 1
        if self.answers_after is not None:
            await self.answers_after.wait()
        if self.error is not None:
            raise self.error
        near, far = socket.socketpair()
        near.setblocking(False)
        self.far.append(far)
        return near

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        trail.append(self)
        self.attempts += 1
        if self.error is not None:
            raise self.error
        return _NoLeg()

    def refuses_udp(self) -> UpstreamError | None:
        return self.error

    def close(self) -> None:
        self.closed = True
        for sock in self.far:
            sock.close()


class _NoLeg:
    def to(self, host: bytes | str, port: int) -> Any:
        return lambda payload: None

    def close(self) -> None:
        pass


def surroundings(**changed: Any) -> Surroundings:
    """What outbounds of a worker share, without a master and without DNS."""

    async def look_up(name: str, how: Resolve) -> Sequence[bytes]:
        raise AssertionError(f"nobody asks for {name}")

    plain: dict[str, Any] = {
        "loop": asyncio.get_running_loop(),
        "counters": [0] * CELLS,
        "mark": None,
        "tun": (),
        "measures": True,
        "look_up": look_up,
        "on_udp_support": lambda tag, supported, reason: None,
        "on_used": lambda tag: None,
        "on_measured": lambda group, delays, has_changed: None,
        "on_passed_over": lambda found: None,
    }
    return Surroundings(**plain | changed)

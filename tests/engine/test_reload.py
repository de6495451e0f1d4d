"""What a reload does when a worker cannot follow, and what it names as having to wait. The rest: tests/e2e/test_reload.py."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import reload
from engine.choices import Choices
from engine.config.effective import CommandLine
from engine.config.model import EngineConfig
from engine.config.named_proxy import for_proxy
from engine.generations import HandoverFailed
from engine.reload import Reloader
from engine.run.network import PrivateNetwork
from shared.config import Policy, ProxyConfig
from tests.support.loop import on_loop


def config(port: int, **changes: Any) -> EngineConfig:
    made = for_proxy(ProxyConfig("socks5", "127.0.0.1", port, addresses=("127.0.0.1",)))
    return msgspec.structs.replace(made, **changes)


class Workers:
    """They answer at once: with `refusals` of policies whose proxy has that port."""

    def __init__(self, refusals: dict[int, str]) -> None:
        self.refusals = refusals
        self.in_force: list[int] = []
        self.renewed: list[int] = []
        self.failure = ""

    async def renew(self, count: int) -> None:
        if self.failure:
            raise HandoverFailed(self.failure)
        self.renewed.append(count)

    async def follow(self, policy: Policy) -> list[str]:
        port: int = policy.outbounds[0].proxy.port  # type: ignore[union-attr]
        self.in_force.append(port)
        return [self.refusals[port]] if port in self.refusals else []


def reloader(new: EngineConfig, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Reloader:
    monkeypatch.setattr(reload, "effective", lambda line, known: (new, ()))
    return Reloader(
        config(1080), CommandLine(), network=PrivateNetwork(Path("/x")), put_in_force=workers.follow,
        renew=workers.renew, workers=2, counted=["proxy"], choices=Choices(None, "info"),
    )  # fmt: skip


@on_loop
async def test_all_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    new, workers = config(1081), Workers({})
    made = reloader(new, workers, monkeypatch)
    done = await made.reload()
    assert (done.errors, done.remarks) == ([], [])
    assert made.config.policy == new.policy
    assert workers.in_force == [1081]


@on_loop
async def test_one_cannot_follow_and_all_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers({1081: "no such thing"})
    made = reloader(config(1081), workers, monkeypatch)
    done = await made.reload()
    assert done.errors == ["no such thing"]
    assert made.config == config(1080)
    assert workers.in_force == [1081, 1080]


@on_loop
async def test_what_cannot_be_swapped_is_named_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    old = config(1080)
    new = config(1080, kill_switch=True, tun=msgspec.structs.replace(old.tun, mtu=1400, table=77))
    made = reloader(new, Workers({}), monkeypatch)
    done = await made.reload()
    assert done.remarks == [
        "tun.mtu: takes effect at the next start",
        "tun.table: takes effect at the next start",
        "kill_switch: takes effect at the next start",
    ]
    assert (made.config.tun, made.config.kill_switch) == (old.tun, False)


@on_loop
async def test_a_mode_is_put_in_force_kept_by_a_reload_and_taken_back_when_one_cannot_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers({})
    made = reloader(config(1081), workers, monkeypatch)
    assert (made.mode, made.modes) == ("rule", ("rule", "global", "direct"))
    assert await made.set_mode("nowhere") == ["there is no mode nowhere, but rule, global, direct"]
    assert await made.set_mode("Rule") == []
    assert workers.in_force == []
    assert await made.set_mode("Direct") == []
    assert (made.mode, made.policy.route.final, workers.in_force) == ("direct", "direct", [1080])
    assert made.policy.counted == ("proxy", "direct")  # the mode's own outbound is counted like any other
    await made.reload()
    assert (made.mode, made.policy.route.final, made.config.policy.route.final) == ("direct", "direct", "proxy")
    workers.refusals = {1081: "no such thing"}
    assert await made.set_mode("global") == ["no such thing"]
    assert (made.mode, workers.in_force) == ("direct", [1080, 1081, 1081, 1081])

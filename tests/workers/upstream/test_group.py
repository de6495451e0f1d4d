"""Groups: whose member a flow gets, and what they learn from failures."""

import asyncio
from typing import Any, cast

import pytest

from shared.config import FallbackOutbound, PassedOver
from tests.support.loop import on_loop
from tests.workers.upstream.outbounds import Scripted
from workers.stack import Refusal
from workers.upstream import DestinationRefused, Outbound, ProxyFailed, UdpUnsupported, UpstreamError, WrongNetwork
from workers.upstream.group import ChosenMember, FallbackGroup

OWNER = cast(Any, None)


def fallback(
    *members: Scripted, failures: int = 1, retry: float = 30.0, told: list[PassedOver] | None = None
) -> FallbackGroup:
    config = FallbackOutbound(
        tag="group", outbounds=tuple(member.tag for member in members), failures=failures, retry=retry
    )
    return FallbackGroup(config, 0, members, (told if told is not None else []).append)


async def way(outbound: Outbound) -> list[str]:
    """Connect and return the tags of the trail."""
    trail: list[Outbound] = []
    (await outbound.connect("203.0.113.1", 80, trail)).close()
    return [taken.tag for taken in trail]


@pytest.fixture
def three() -> Any:
    """Three members; their far ends are closed afterwards."""
    members = [Scripted(tag) for tag in ("a", "b", "c")]
    yield members
    for member in members:
        member.close()


@on_loop
async def test_chosen_member_takes_all_until_another_is_chosen() -> None:
    a, b = Scripted("a"), Scripted("b", networks=("tcp",))
    group = ChosenMember("group", "selector", 0, (a, b), a, interrupts=False)
    assert await way(group) == ["group", "a"]
    assert group.carries("udp")
    assert group.choose("b")
    assert not group.choose("b") and not group.choose("nobody")
    assert await way(group) == ["group", "b"]
    assert not group.carries("udp")
    a.close()
    b.close()


def test_fallback_takes_the_first_that_works(three: list[Scripted]) -> None:
    a, b, _ = three
    a.error = b.error = ProxyFailed("dead")

    @on_loop
    async def run() -> None:
        group = fallback(*three)
        assert await way(group) == ["group", "c"], "within the same flow"
        assert await way(group) == ["group", "c"]
        assert (a.attempts, b.attempts) == (1, 1), "then they are passed over"
        assert group.chosen.tag == "c"

    run()


def test_fallback_takes_a_member_again_after_a_while(three: list[Scripted]) -> None:
    a, b, _ = three
    a.error = ProxyFailed("dead")

    @on_loop
    async def run() -> None:
        group = fallback(*three, retry=0.0)
        assert await way(group) == ["group", "b"]
        a.error = None
        assert await way(group) == ["group", "a"]
        assert b.attempts == 1

    run()


def test_what_flows_of_one_worker_have_found_out_holds_in_the_others(three: list[Scripted]) -> None:
    a, b, _ = three

    @on_loop
    async def run() -> None:
        told: list[PassedOver] = []
        here, elsewhere = fallback(*three, told=told), fallback(*three)
        a.error = ProxyFailed("dead")
        assert await way(here) == ["group", "b"]
        (found,) = told
        assert (found.group, found.member) == ("group", "a")
        elsewhere.take(found)
        assert await way(elsewhere) == ["group", "b"]
        assert (a.attempts, b.attempts) == (1, 2), "not tried there"
        a.error = None
        here.take(PassedOver(group="group", member="a", until=1.0))  # long ago
        assert await way(here) == ["group", "a"]
        assert told[1:] == [PassedOver(group="group", member="a", until=0.0)]
        elsewhere.take(told[-1])
        assert await way(elsewhere) == ["group", "a"]

    run()


def test_one_flow_tries_a_dead_member_again_while_the_others_pass_it_over(three: list[Scripted]) -> None:
    a, b, _ = three

    @on_loop
    async def run() -> None:
        group = fallback(*three)
        group.take(PassedOver(group="group", member="a", until=1.0))
        a.error = ProxyFailed("still dead")
        a.answers_after = asyncio.Event()  # as a black hole
        first = asyncio.ensure_future(way(group))
        await asyncio.sleep(0)
        assert a.attempts == 1
        assert await way(group) == await way(group) == ["group", "b"]
        a.answers_after.set()
        assert await first == ["group", "b"]
        assert (a.attempts, b.attempts) == (1, 3)

    run()


def test_fallback_waits_for_as_many_failures_as_it_is_told(three: list[Scripted]) -> None:
    a = three[0]
    a.error = ProxyFailed("dead")

    @on_loop
    async def run() -> None:
        group = fallback(*three, failures=3)
        for _ in range(5):
            assert await way(group) == ["group", "b"]
        assert a.attempts == 3

    run()


def test_destination_that_refuses_is_an_answer(three: list[Scripted]) -> None:
    a, b, _ = three
    a.error = DestinationRefused("closed", Refusal.REFUSED)

    @on_loop
    async def run() -> None:
        with pytest.raises(DestinationRefused):
            await way(fallback(*three))
        assert b.attempts == 0

    run()


def test_fallback_without_a_member_that_works_tells_of_the_last_one(three: list[Scripted]) -> None:
    for member in three:
        member.error = ProxyFailed(member.tag)

    @on_loop
    async def run() -> None:
        group = fallback(*three)
        for _ in range(2):  # passed over or not, they are all there is
            with pytest.raises(ProxyFailed, match="c"):
                await way(group)
        assert [member.attempts for member in three] == [2, 2, 2]

    run()


def test_fallback_looks_for_a_member_with_udp(three: list[Scripted]) -> None:
    a, b, c = three
    a.networks, b.error = ("tcp",), UdpUnsupported("no UDP")

    @on_loop
    async def run() -> None:
        group = fallback(*three)
        trail: list[Outbound] = []
        await group.open_udp(OWNER, None, trail)
        assert [taken.tag for taken in trail] == ["group", "c"]
        assert group.refuses_udp() is None
        b.error = None
        assert await way(group) == ["group", "a"], "a proxy without UDP still is one for TCP"
        c.networks = b.networks = ("tcp",)
        with pytest.raises(WrongNetwork):
            await group.open_udp(OWNER, None, [])

    run()


def test_errors_tell_the_application_what_fits() -> None:
    errors: list[UpstreamError] = [WrongNetwork("x", "tcp"), WrongNetwork("x", "udp"), ProxyFailed("x")]
    assert [error.refusal for error in errors] == [
        Refusal.REFUSED,
        Refusal.PORT_UNREACHABLE,
        Refusal.NET_UNREACHABLE,
    ]

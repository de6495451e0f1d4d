"""How much time may go by in looking up programs for views."""

import asyncio
import socket
from typing import Any, cast

from shared.config import Policy
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import Compiler
from workers.relay.facts import FlowFacts
from workers.relay.owners import AT_ONCE, SAVED_MAX, SHARE, Owners
from workers.relay.router import Router
from workers.upstream.block import BlockUpstream

HERE, THERE = socket.inet_aton("192.0.2.1"), socket.inet_aton("203.0.113.10")
WORKERS = 2


class Looks:
    """A master that takes `takes` seconds, on a clock of its own, to find the programs of all flows that come together."""

    def __init__(self, takes: float) -> None:
        self.now = 1000.0
        self.takes = takes
        self.found: list[int] = []
        self.owners = Owners(self._find, WORKERS, lambda: self.now)
        self._until = 0.0

    async def _find(self, facts: FlowFacts) -> None:
        facts.owner_sought = True
        self._until = max(self._until, self.now + self.takes)
        await asyncio.sleep(0)
        self.now = max(self.now, self._until)
        self.found.append(facts.id)

    def seek(self, *numbers: int) -> list[int]:
        """Ask for new flows of these numbers; return of which the program was looked up."""
        self.found.clear()
        self._until = 0.0
        asyncio.run(self.owners.seek(map(flow, numbers)))
        return sorted(self.found)


def flow(number: int) -> FlowFacts:
    """A flow of whose program nothing is known."""
    outbounds = {"block": BlockUpstream("block", 0)}
    router = Router(
        Policy(outbounds=cast(Any, tuple(outbounds.values()))), Compiler().compile(()), cast(Any, outbounds)
    )
    ends = Ends("tcp", HERE, 1000 + number, THERE, 443)
    return FlowFacts(0, number, ends, router.begin(Flow(**ends._asdict())))


def test_whoever_looks_now_and_then_is_answered_at_once() -> None:
    looks = Looks(takes=SAVED_MAX / 5)
    for number in range(20):
        assert looks.seek(number) == [number]
        looks.now += looks.takes / SHARE * WORKERS


def test_looks_take_no_more_than_their_share_of_the_time() -> None:
    looks = Looks(takes=0.1)
    began, asked, done = looks.now, 0, 0
    while looks.now < began + 100:
        asked += 1
        done += len(looks.seek(asked))
        looks.now += 0.1
    assert asked > 500
    assert SHARE / WORKERS * 100 - 0.2 < done * looks.takes < SHARE / WORKERS * 100 + SAVED_MAX + 0.2


def test_a_look_that_took_very_long_stops_others_for_a_while_only() -> None:
    looks = Looks(takes=100.0)
    assert looks.seek(1) == [1]
    assert looks.seek(2) == []
    looks.now += SAVED_MAX / SHARE * WORKERS + 1
    assert looks.seek(2) == [2]


def test_many_are_looked_up_in_parts() -> None:
    looks = Looks(takes=0.001)
    assert len(looks.seek(*range(AT_ONCE + 10))) == AT_ONCE


def test_nobody_is_sought_twice() -> None:
    looks = Looks(takes=0.001)
    known = flow(1)
    asyncio.run(looks.owners.seek([known]))
    asyncio.run(looks.owners.seek([known]))
    assert looks.found == [1]

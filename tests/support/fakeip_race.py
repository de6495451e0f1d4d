"""One process of a race for the fake-IP table. `python -m tests.support.fakeip_race TABLE_FD TURNS_FD NUMBER SEED`, until its
input ends; then it prints how many turns had a certain outcome, and how many names it evicted.
"""

import select
import sys
from ipaddress import IPv4Network, IPv6Network
from mmap import mmap
from random import Random
from zlib import crc32

from shared.fakeip import FakeIpLayout, FakeIpTable

__all__ = ["RACE", "UNIVERSE", "WORKERS", "Racer"]

UNIVERSE = [f"{crc32(bytes((n,)))}-{n}.example" for n in range(200)]
"""Names that show by themselves whether they are whole."""

WORKERS = 3
RACE = FakeIpLayout(IPv4Network("198.18.0.0/15"), IPv6Network("fc00::/18"), 100)
"""Room for half of the universe: every second name evicts another."""


class Racer:
    """One process of a race. All count their turns in a second memory, so that each knows what the others can have done."""

    def __init__(self, table: FakeIpTable, turns_fd: int, number: int, seed: int) -> None:
        self.table = table
        self.turns = mmap(turns_fd, 4096)
        self.all_turns = memoryview(self.turns).cast("Q")
        self.number = number
        self.random = Random(seed)
        self.sure = 0  # turns of which the outcome was certain

    def turn(self) -> None:
        """Ask for a name and dial its address. Only when all other names were used meanwhile may it have gone."""
        self.all_turns[self.number] += 1
        before = sum(self.all_turns[: WORKERS + 1])
        name = self.random.choice(UNIVERSE)
        address = self.table.address_of(name, 4)
        if address is None:
            assert self.table.busy, "only a crowd at the lock is a reason"
            return
        found = self.table.name_of(address)
        turns = sum(self.all_turns[: WORKERS + 1]) - before + WORKERS  # these had begun earlier
        if 2 * turns < RACE.names - 10:
            self.sure += 1
            assert found == name
        assert found is None or found in UNIVERSE

    def close(self) -> None:
        self.all_turns.release()
        self.turns.close()


def race(table_fd: int, turns_fd: int, number: int, seed: int) -> None:
    table = FakeIpTable.attach(table_fd, RACE)
    racer = Racer(table, turns_fd, number, seed)
    print("started", flush=True)
    ended = False
    while not ended:
        for _ in range(200):
            racer.turn()
        ended = bool(select.select([0], [], [], 0)[0])
    print(racer.sure, table.evicted)


if __name__ == "__main__":
    race(*map(int, sys.argv[1:]))

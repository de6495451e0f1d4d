"""shared/fakeip.py against an obvious table, against damage of every kind, and between processes that are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import cycle, islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.fakeip import EVICTION_SAMPLE, FIRST, LAST, FakeIpLayout, FakeIpTable
from tests.support.fakeip_race import RACE, UNIVERSE, WORKERS, Racer

INET4 = IPv4Network("198.18.0.0/15")
INET6 = IPv6Network("fc00::/18")
SMALL = FakeIpLayout(INET4, INET6, 8)


class Clock:
    """One clock for all processes of a test."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def table() -> Iterator[FakeIpTable]:
    table = FakeIpTable.create(SMALL, Clock())
    yield table
    table.close()


def attached(table: FakeIpTable) -> FakeIpTable:
    return FakeIpTable.attach(os.dup(table.fd), table.layout, table._now)


def address_of(table: FakeIpTable, name: str, version: int = 4) -> bytes:
    address = table.address_of(name, version)
    assert address is not None
    return address


def packed(text: str) -> bytes:
    return ip_address(text).packed


# one process


def test_name_and_address_lead_to_each_other(table: FakeIpTable) -> None:
    four, six = address_of(table, "www.example.org", 4), address_of(table, "www.example.org", 6)
    assert (IPv4Address(four), IPv6Address(six)) == (IPv4Address("198.18.0.4"), IPv6Address("fc00::4"))
    assert table.name_of(four) == table.name_of(six) == "www.example.org"
    assert len(table) == table.allocated == 1


def test_what_is_forgotten_leads_nowhere_and_its_address_is_given_out_last(table: FakeIpTable) -> None:
    other = attached(table)
    old = [address_of(table, f"{letter}.example") for letter in "abc"]
    assert other.clear() == 3
    assert [table.name_of(address) for address in old] == [None] * 3
    assert other.clear() == 0
    new = [address_of(other, f"{letter}.example") for letter in "abcde"]
    assert not set(old) & set(new)
    assert [table.name_of(address) for address in new] == [f"{letter}.example" for letter in "abcde"]
    again = [address_of(table, f"{letter}.example") for letter in "xyz"]
    assert set(again) == set(old)
    assert table.name_of(again[0]) == "x.example"
    other.close()


def test_spelling_makes_no_difference(table: FakeIpTable) -> None:
    assert address_of(table, "WWW.Example.ORG.") == address_of(table, "www.example.org")
    assert table.name_of(address_of(table, "WWW.Example.ORG.")) == "www.example.org"


@pytest.mark.parametrize("name", ["", ".", "a" * 254, "b\u00fccher.example"])
def test_what_is_no_name_gets_no_address(table: FakeIpTable, name: str) -> None:
    assert table.address_of(name, 4) is None
    assert len(table) == 0


@pytest.mark.parametrize("name", ["a", "a" * 253, r"a\032b\.c.example"])
def test_name_of_any_length_and_with_escapes(table: FakeIpTable, name: str) -> None:
    assert table.name_of(address_of(table, name)) == name


def test_version_without_a_range() -> None:
    table = FakeIpTable.create(FakeIpLayout(None, INET6, 8))
    assert table.address_of("a", 4) is None
    assert table.name_of(packed("198.18.0.4")) is None
    assert packed("198.18.0.4") not in table
    assert table.name_of(address_of(table, "a", 6)) == "a"
    table.close()


def test_address_that_no_one_has(table: FakeIpTable) -> None:
    assert table.name_of(packed("198.18.0.5")) is None
    assert len(table) == 0


@pytest.mark.parametrize(
    ("address", "given_out"),
    [
        ("198.18.0.3", False),
        ("198.18.0.4", True),
        ("198.18.0.11", True),
        ("198.18.0.12", False),
        ("192.0.2.1", False),
        ("fc00::3", False),
        ("fc00::4", True),
        ("fc00::b", True),
        ("fc00::c", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_given_out(table: FakeIpTable, address: str, given_out: bool) -> None:
    assert (packed(address) in table) == given_out
    if not given_out:
        assert table.name_of(packed(address)) is None


def test_every_address_of_a_range_but_its_ends_is_used() -> None:
    network = IPv4Network("192.0.2.0/28")
    table = FakeIpTable.create(FakeIpLayout(network, None))
    used = {IPv4Address(address_of(table, f"{n}.example")) for n in range(50)}
    assert used == set(list(network)[FIRST:-LAST])
    table.close()


@pytest.mark.parametrize(
    ("inet4", "inet6"), [(None, None), (IPv4Network("192.0.2.0/30"), None), (INET4, IPv6Network("fc00::/126"))]
)
def test_range_without_room_is_an_error(inet4: IPv4Network | None, inet6: IPv6Network | None) -> None:
    with pytest.raises(ValueError, match="range"):
        FakeIpLayout(inet4, inet6)


# least recently used


def test_the_name_unused_for_longest_goes(table: FakeIpTable) -> None:
    addresses = {name: address_of(table, name) for name in "abcdefgh"}
    assert table.name_of(addresses["a"]) == "a"  # dialled
    assert address_of(table, "b", 6)  # asked again
    assert address_of(table, "new") == addresses["c"]
    assert table.name_of(addresses["c"]) == "new"
    assert address_of(table, "newer") == addresses["d"]
    assert [table.name_of(addresses[name]) for name in "abefgh"] == list("abefgh")
    assert (table.allocated, table.evicted, len(table)) == (10, 2, 8)


def test_names_used_once_go_in_their_order_in_a_large_table() -> None:
    names = 4 * EVICTION_SAMPLE
    table = FakeIpTable.create(FakeIpLayout(INET4, None, names), Clock())
    addresses = [address_of(table, f"{n}.example") for n in range(names)]
    again = [address_of(table, f"{n}.example") for n in range(names, 3 * names)]
    assert again == addresses * 2
    table.close()


def test_names_in_use_stay_in_a_large_table() -> None:
    """A thousand names that are each used again before the table has gone by, and ten thousand that are asked for once."""
    names = 8 * EVICTION_SAMPLE
    table = FakeIpTable.create(FakeIpLayout(INET4, None, names), Clock())
    used = [(f"{n}.used", address_of(table, f"{n}.used")) for n in range(1000)]
    turns = cycle(used)
    for n in range(10_000):
        address_of(table, f"{n}.once")
        for name, address in islice(turns, 3):
            assert table.name_of(address) == name
    assert table.evicted == 11_000 - names
    table.close()


def test_name_used_while_it_is_being_evicted_lives(table: FakeIpTable, monkeypatch: pytest.MonkeyPatch) -> None:
    other = attached(table)
    addresses = {name: address_of(table, name) for name in "abcdefgh"}
    oldest = table._oldest
    users = iter(("a", "b"))

    def used_just_then() -> tuple[int, int]:
        found = oldest()
        if name := next(users, None):
            assert other.address_of(name, 4) == addresses[name]
        return found

    monkeypatch.setattr(table, "_oldest", used_just_then)
    assert address_of(table, "new") == addresses["c"]
    assert other.name_of(addresses["a"]) == "a" and other.address_of("b", 4) == addresses["b"]
    other.close()


@pytest.mark.parametrize(
    "use", [lambda table, address: table.address_of("a", 4), FakeIpTable.name_of], ids=["name", "address"]
)
def test_name_evicted_while_it_is_being_used_is_not_found(table: FakeIpTable, use: object) -> None:
    """Its user has found the entry and is about to stamp it when it goes."""
    other = attached(table)
    addresses = {name: address_of(table, name) for name in "abcdefgh"}

    def evicted_just_then() -> int:
        other._now = table._now
        assert address_of(table, "new") == addresses["a"]
        return other._now()

    other._now = evicted_just_then
    result = use(other, addresses["a"])  # type: ignore[operator]
    assert result in ("new", addresses["b"])  # the name that is there now; another address for the old name
    other.close()


# against an obvious table

NAMES = [f"{letter}.example" for letter in "abcdefghijklmnopqrst"]


class TableModel(RuleBasedStateMachine):
    """Some processes with one table behave like one ordered dictionary."""

    @initialize(names=st.integers(1, 12), processes=st.integers(1, 3))
    def start(self, names: int, processes: int) -> None:
        self.clock = Clock()
        self.names = names
        first = FakeIpTable.create(FakeIpLayout(INET4, INET6, names), self.clock)
        self.tables = [first, *(attached(first) for _ in range(1, processes))]
        self.model: dict[str, int] = {}  # name -> entry; least recently used first

    def table(self, process: int) -> FakeIpTable:
        return self.tables[process % len(self.tables)]

    @rule(process=st.integers(0, 2), name=st.sampled_from(NAMES), version=st.sampled_from((4, 6)))
    def ask(self, process: int, name: str, version: int) -> None:
        address = address_of(self.table(process), name, version)
        entry = self.model.pop(name, None)
        if entry is None:
            full = len(self.model) == self.names
            entry = self.model.pop(next(iter(self.model))) if full else len(self.model)
        self.model[name] = entry
        assert ip_address(address) == (INET4 if version == 4 else INET6)[FIRST + entry]

    @rule(process=st.integers(0, 2), entry=st.integers(0, 12))
    def dial(self, process: int, entry: int) -> None:
        name = next((name for name, at in self.model.items() if at == entry), None)
        assert self.table(process).name_of(INET4[FIRST + entry].packed) == name
        if name:
            self.model[name] = self.model.pop(name)

    @rule(process=st.integers(0, 2))
    def restart(self, process: int) -> None:
        """A worker dies and another takes its place."""
        old = self.table(process)
        self.tables[process % len(self.tables)] = attached(old)
        old.close()

    @invariant()
    def index_holds_every_name_once(self) -> None:
        for table in self.tables[:1]:
            words = [word for word in table._index if word]
            assert sorted(word & 0xFFFFFFFF for word in words) == sorted(entry + 1 for entry in self.model.values())

    def teardown(self) -> None:
        for table in getattr(self, "tables", ()):
            table.close()


TestTableModel = TableModel.TestCase


# damage


def check_sound(table: FakeIpTable) -> None:
    """Whatever can be read is a name that was given; every name can still be given an address that leads back to it."""
    readable = {}
    for entry in range(table.layout.names):
        name = table.name_of(INET4[FIRST + entry].packed)
        assert name is None or name in UNIVERSE
        readable[entry] = name
    for name in UNIVERSE[: 2 * table.layout.names]:
        address = address_of(table, name)
        assert table.name_of(address) == name
        assert table.address_of(name, 4) == address


@settings(deadline=None)
@given(names=st.integers(1, 12), before=st.integers(0, 20), seed=st.integers(0, 1 << 30))
def test_death_at_any_point_of_a_write(names: int, before: int, seed: int) -> None:
    """The memory holds any part of what one call changes, in any order: more than a death, a processor or a disk can do."""
    random = Random(seed)
    table = FakeIpTable.create(FakeIpLayout(INET4, INET6, names), Clock())
    for _ in range(before):
        address_of(table, random.choice(UNIVERSE[:20]))
    old = bytes(table._memory)
    address_of(table, random.choice(UNIVERSE[:30]))
    new = bytes(table._memory)
    words = range(0, len(old), 8)  # a word is written whole; of names any bytes may be
    for at in words:
        if old[at : at + 8] != new[at : at + 8]:
            whole = not table.layout.entries_at <= at < table.layout.index_at
            for piece in [slice(at, at + 8)] if whole else [slice(at + n, at + n + 1) for n in range(8)]:
                if random.random() < 0.5:
                    table._memory[piece] = old[piece]
    check_sound(table)
    table.close()


@pytest.mark.parametrize("names", [1, 2, 5])
def test_what_deaths_leave_in_the_index_does_not_fill_it(names: int) -> None:
    """Every writer dies after it has made the old name unreadable, so that no one can tell which word led to it."""
    layout = FakeIpLayout(INET4, None, names)
    table = FakeIpTable.create(layout, Clock())
    for name in UNIVERSE:
        assert table.name_of(address_of(table, name)) == name
        for at in range(layout.entries_at + 4, layout.index_at, (layout.index_at - layout.entries_at) // names):
            table._memory[at] = 0
    check_sound(table)
    table.close()


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_table_in_a_file_is_sound_whatever_the_disk_lost(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pages of different ages, of which some are zeros, behind a header."""
    random = Random(seed)
    path = tmp_path_factory.mktemp("fakeip") / "table"
    layout = FakeIpLayout(INET4, INET6, 60)
    ages = []
    for _ in range(3):
        table = FakeIpTable.load(path, layout)
        for name in random.sample(UNIVERSE, 40):
            address_of(table, name)
        table.close()
        ages.append(path.read_bytes())
    pages = [random.choice((*ages, bytes(layout.size)))[at : at + 4096] for at in range(4096, layout.size, 4096)]
    path.write_bytes(ages[random.randrange(3)][:4096] + b"".join(pages))
    table = FakeIpTable.load(path, layout)
    check_sound(table)
    table.close()


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_garbage_in_memory_is_no_name(seed: int) -> None:
    table = FakeIpTable.create(FakeIpLayout(INET4, INET6, 30), Clock())
    random = Random(seed)
    for name in UNIVERSE[:40]:
        address_of(table, name)
    layout = table.layout
    for _ in range(20):
        at = random.randrange(layout.entries_at, layout.size - 8)
        table._memory[at : at + 8] = random.randbytes(8)
    for entry in range(layout.names):
        name = table.name_of(INET4[FIRST + entry].packed)
        assert name is None or name in UNIVERSE
    table.close()


# in a file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fakeip"


def test_names_keep_their_addresses_over_a_restart(path: Path) -> None:
    table = FakeIpTable.load(path, SMALL)
    addresses = {name: address_of(table, name) for name in "abc"}
    table.save()
    table.close()
    assert path.stat().st_mode & 0o777 == 0o600
    table = FakeIpTable.load(path, SMALL)
    assert {name: table.name_of(address) for name, address in addresses.items()} == {name: name for name in "abc"}
    assert address_of(table, "b") == addresses["b"]
    assert len(table) == 3
    assert address_of(table, "d") not in addresses.values()
    table.close()


def test_order_of_use_is_kept_over_a_reboot(path: Path) -> None:
    """The clock of the machine begins anew; what was used before is older than all that is used now."""
    table = FakeIpTable.load(path, SMALL, Clock())
    addresses = {name: address_of(table, name) for name in "abcdefgh"}
    assert table.name_of(addresses["a"]) == "a"
    table.close()
    clock = Clock()
    clock.now = 20
    table = FakeIpTable.load(path, SMALL, clock)
    assert [address_of(table, name) for name in ("new", "newer")] == [addresses["b"], addresses["c"]]
    assert table.name_of(addresses["a"]) == "a"
    table.close()


def test_other_ranges_begin_anew(path: Path) -> None:
    table = FakeIpTable.load(path, SMALL)
    address = address_of(table, "a")
    table.close()
    for layout in (
        FakeIpLayout(INET4, None, 8),
        FakeIpLayout(INET4, INET6, 9),
        FakeIpLayout(IPv4Network("198.18.0.0/16"), INET6, 8),
    ):
        table = FakeIpTable.load(path, layout)
        assert len(table) == 0 and table.name_of(address) is None
        address_of(table, "a")
        table.close()


def test_file_in_use_is_refused(path: Path) -> None:
    table = FakeIpTable.load(path, SMALL)
    with pytest.raises(BlockingIOError):
        FakeIpTable.load(path, SMALL)
    table.close()
    FakeIpTable.load(path, SMALL).close()


@pytest.mark.parametrize("content", [b"something of the user's", b"{}" * 3000])
def test_file_of_another_kind_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a fake-IP table: remove it"):
        FakeIpTable.load(path, SMALL)
    assert path.read_bytes() == content


def test_file_that_was_never_written_begins_anew(path: Path) -> None:
    """The engine was killed between making the file and writing its header."""
    path.write_bytes(bytes(SMALL.size))
    table = FakeIpTable.load(path, SMALL)
    assert table.name_of(address_of(table, "a")) == "a"
    table.close()


def test_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        FakeIpTable.load(path, SMALL)
    assert not (tmp_path / "target").exists()


def test_close_leaves_no_descriptor(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    FakeIpTable.create(SMALL).close()
    FakeIpTable.load(path, SMALL).close()
    path.write_bytes(b"text")
    with pytest.raises(ValueError):
        FakeIpTable.load(path, SMALL)
    assert len(os.listdir("/proc/self/fd")) == before


# size


def test_a_hundred_thousand_names_take_less_than_64_mib_for_all() -> None:
    """All memory is the memfd's: a process that maps it has nothing of its own that grows with the names."""
    table = FakeIpTable.create(FakeIpLayout(INET4, INET6))
    addresses = [address_of(table, f"host-{n}.service.example.org") for n in range(100_000)]
    assert len(set(addresses)) == len(table) == 100_000 and table.evicted == 0
    assert os.fstat(table.fd).st_blocks * 512 < 64 << 20
    assert table.layout.size < 64 << 20, "also when every address of the range is used"
    other = attached(table)
    for n in range(0, 100_000, 997):
        assert other.name_of(addresses[n]) == f"host-{n}.service.example.org"
        assert other.address_of(f"host-{n}.service.example.org", 4) == addresses[n]
    other.close()
    table.close()


# several processes

KILLS = 40


def spawn(table: FakeIpTable, turns_fd: int, number: int, seed: int) -> "subprocess.Popen[str]":
    arguments = [str(argument) for argument in (table.fd, turns_fd, number, seed)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fakeip_race", *arguments],
        pass_fds=(table.fd, turns_fd),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdout.readline() == "started\n"
    return worker


def test_processes_that_are_killed_at_any_time_leave_a_sound_table() -> None:
    table = FakeIpTable.create(RACE)
    turns_fd = os.memfd_create("turns")
    os.ftruncate(turns_fd, 4096)
    racer = Racer(table, turns_fd, WORKERS, seed=7)
    workers = [spawn(table, turns_fd, number, number) for number in range(WORKERS)]
    try:
        for kill in range(KILLS):
            for _ in range(racer.random.randrange(200)):
                racer.turn()
            number = kill % WORKERS
            workers[number].kill()
            workers[number].communicate()
            assert workers[number].returncode == -signal.SIGKILL, "the worker found a fault (see its traceback)"
            workers[number] = spawn(table, turns_fd, number, WORKERS + kill)
        for worker in workers:
            report, _ = worker.communicate(timeout=60)  # the end of its input is the end
            assert worker.returncode == 0, "the worker found a fault (see its traceback)"
            sure, evicted = map(int, report.split())
            assert sure > 0 and evicted > 0, "it raced with nobody"
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
        racer.close()
        os.close(turns_fd)
    assert racer.sure > 0
    check_sound(table)
    table.close()


def test_a_writer_that_stands_still_delays_only_new_names_and_its_death_frees_the_lock(table: FakeIpTable) -> None:
    address = address_of(table, "known")
    program = "import fcntl, sys, time; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", program, str(table.fd)]
    with subprocess.Popen(command, pass_fds=(table.fd,), stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert table.address_of("new", 4) is None
        assert table.busy == 1
        assert table.address_of("known", 4) == address and table.name_of(address) == "known"
        holder.kill()
        holder.wait()
        assert table.name_of(address_of(table, "new")) == "new"

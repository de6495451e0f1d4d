"""Both kinds of system, side by side: macOS's works on Linux as well, but for the kqueue, which a pidfd stands for."""

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from shared.system import darwin, linux
from shared.system.stream import MESSAGE_MAX
from tests.support.darwin.kqueue import KQUEUE


@pytest.fixture(params=[linux, darwin], ids=["linux", "darwin"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(darwin, "select", KQUEUE)
    before = set(os.listdir("/proc/self/fd")), set(os.listdir("/dev/shm"))
    yield request.param
    assert (set(os.listdir("/proc/self/fd")), set(os.listdir("/dev/shm"))) == before


def test_memory_is_zeroed_shared_and_has_no_name(system: ModuleType) -> None:
    fd = system.create_memory("test", 3 * mmap.PAGESIZE)
    try:
        assert not os.get_inheritable(fd)
        with mmap.mmap(fd, 3 * mmap.PAGESIZE) as one, mmap.mmap(fd, 3 * mmap.PAGESIZE) as other:
            assert bytes(one) == bytes(3 * mmap.PAGESIZE)
            one[-1] = 7
            assert other[-1] == 7
    finally:
        os.close(fd)


def test_memory_reaches_a_process_that_inherits_it(system: ModuleType) -> None:
    fd = system.create_memory("test", mmap.PAGESIZE)
    try:
        script = f"import mmap; mmap.mmap({fd}, {mmap.PAGESIZE})[:5] = b'hello'"
        subprocess.run([sys.executable, "-c", script], check=True, pass_fds=(fd,))
        with mmap.mmap(fd, mmap.PAGESIZE) as memory:
            assert memory[:5] == b"hello"
    finally:
        os.close(fd)


def test_sealed_file_is_read_from_its_beginning_and_not_written(system: ModuleType) -> None:
    fd = system.sealed_file(b"x" * 100_000)
    try:
        assert os.read(fd, 200_000) == b"x" * 100_000
        with pytest.raises(OSError):
            os.pwrite(fd, b"y", 0)
    finally:
        os.close(fd)


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_doorbell(system: ModuleType) -> None:
    bell = system.open_doorbell()
    assert not readable(bell.read)
    for _ in range(3):
        system.ring_doorbell(bell.write)
    assert readable(bell.read)
    system.clear_doorbell(bell.read)
    assert not readable(bell.read)
    bell.close()


def test_doorbell_that_nobody_hears_does_not_block(system: ModuleType) -> None:
    bell = system.open_doorbell()
    for _ in range(70_000):  # more than a pipe holds
        system.ring_doorbell(bell.write)
    bell.close()


def test_end_of_a_process_is_told(system: ModuleType) -> None:
    process = subprocess.Popen(["sleep", "60"])
    watch = system.ExitWatch(process.pid)
    assert not readable(watch.fileno())
    process.send_signal(signal.SIGKILL)
    assert select.select([watch.fileno()], [], [], 30)[0]
    assert process.wait() == -signal.SIGKILL
    watch.close()


def test_end_before_it_is_watched_is_told(system: ModuleType) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    watch = system.ExitWatch(process.pid)
    assert readable(watch.fileno())
    process.wait()
    watch.close()


# messages


def test_messages_keep_their_boundaries(system: ModuleType) -> None:
    ours, theirs = system.message_pair()
    with ours, theirs:
        for size in (1, 5, 30_000, 2):
            ours.send(b"m" * size)
        assert [len(theirs.recv(32_768)) for _ in range(4)] == [1, 5, 30_000, 2]


def test_end_is_an_empty_message(system: ModuleType) -> None:
    ours, theirs = system.message_pair()
    with theirs:
        ours.send(b"last words")
        ours.close()
        assert [theirs.recv(100), theirs.recv(100), theirs.recv(100)] == [b"last words", b"", b""]


def test_descriptors_come_with_their_message(system: ModuleType) -> None:
    ours, theirs = system.message_pair()
    with ours, theirs:
        reading, writing = os.pipe()
        ours.send(b"before")
        socket.send_fds(ours, [b"here"], [writing])
        ours.send(b"after")
        os.close(writing)
        assert socket.recv_fds(theirs, 100, 1)[:2] == (b"before", [])
        data, (received,), _, _ = socket.recv_fds(theirs, 100, 1)
        assert data == b"here"
        assert socket.recv_fds(theirs, 100, 1)[:2] == (b"after", [])
        os.write(received, b"x")
        assert os.read(reading, 1) == b"x"
        os.close(reading)
        os.close(received)


def test_full_socket_takes_messages_whole_or_not_at_all(system: ModuleType) -> None:
    ours, theirs = system.message_pair()
    with ours, theirs:
        for end in ours, theirs:
            end.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(f"{sent:06}".encode() * 3000)
                sent += 1
        received = []
        while len(received) < sent:
            try:
                received.append(theirs.recv(32_768))
            except BlockingIOError:
                assert ours.has_unsent
                ours.flush()
        assert received == [f"{n:06}".encode() * 3000 for n in range(sent)]
        with pytest.raises(BlockingIOError):
            theirs.recv(32_768)


def test_stream_in_any_pieces_gives_the_same_messages() -> None:
    ours, theirs = darwin.message_pair()
    wire = socket.socket(fileno=os.dup(ours.fileno()))
    with ours, theirs, wire:
        theirs.setblocking(False)
        received = []
        for byte in b"\x03\0\0\0\0abc\x00\0\0\0\0\x01\0\0\0\0z":
            wire.send(bytes((byte,)))
            try:
                received.append(theirs.recv(100))
            except BlockingIOError:
                continue
        assert received == [b"abc", b"", b"z"]


def test_message_longer_than_any_ends_the_conversation() -> None:
    ours, theirs = darwin.message_pair()
    wire = socket.socket(fileno=os.dup(ours.fileno()))
    with ours, theirs, wire:
        wire.send((MESSAGE_MAX + 1).to_bytes(4, "little") + b"\0")
        with pytest.raises(OSError, match="longer than any"):
            theirs.recv(100)


def test_announced_descriptors_that_do_not_come_end_it() -> None:
    ours, theirs = darwin.message_pair()
    wire = socket.socket(fileno=os.dup(ours.fileno()))
    with ours, theirs, wire:
        wire.send(b"\x01\0\0\0\x02x")
        with pytest.raises(OSError, match="without its descriptors"):
            socket.recv_fds(theirs, 100, 1)


def test_file_limit_is_what_the_kernel_will_take() -> None:
    assert linux.file_limit(4096) == 4096
    assert [darwin.file_limit(hard) for hard in (256, 1 << 63, -1)] == [256, 10240, 10240]


class Options:
    """A socket that notes its options."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.set: list[tuple[int, int, int]] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.set.append((level, option, value))


def test_way_out_is_an_option_of_the_family() -> None:
    v4, v6 = Options(socket.AF_INET), Options(socket.AF_INET6)
    darwin.bind_to_interface(v4, 4)  # type: ignore[arg-type]
    darwin.bind_to_interface(v6, 4)  # type: ignore[arg-type]
    assert (v4.set, v6.set) == ([(0, 25, 4)], [(41, 125, 4)])
    with pytest.raises(OSError, match="no network"):
        darwin.bind_to_interface(v4, 0)  # type: ignore[arg-type]

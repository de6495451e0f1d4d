"""engine/tun/darwin.py on the kernel of tests/support/darwin."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from engine.darwin import system
from engine.tun import TunError
from engine.tun.darwin import BatchReader, open_utun
from tests.support.darwin.kernel import Kernel
from tests.support.darwin.stand_in import stand_in

GET_INFO = ("ioctl", "0xc0644e03", "00000000" + b"com.apple.net.utun_control".hex() + 70 * "00")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    stand_in(lambda name, *arguments: getattr(made, name)(*arguments), monkeypatch.setattr)
    yield made
    made.close()


def test_lowest_free_unit_is_taken_and_its_name_read_back(kernel: Kernel) -> None:
    tun = open_utun("", mtu=1500)
    assert (tun.name, tun.header_len, tun.offload, os.get_blocking(tun.fd)) == ("utun4", 4, False, False)
    assert kernel.log == [
        GET_INFO,
        ("connect_control", "202002000500000000000000" + 20 * "00"),
        ("set_option", "2,16", struct.pack("=I", 512 * 1024 // 1504).hex()),
    ]
    tun.close()


def test_unit_is_one_more_than_the_number_in_the_name(kernel: Kernel) -> None:
    tun = open_utun("utun8", mtu=65535)
    assert tun.name == "utun8"
    assert kernel.log[1:] == [
        ("connect_control", "202002000500000009000000" + 20 * "00"),
        ("set_option", "2,16", "07000000"),  # 7 times 65539 bytes stay below 512 KiB
    ]
    tun.close()


def test_interface_goes_with_its_last_descriptor(kernel: Kernel) -> None:
    tun = open_utun("utun8", mtu=1500)
    inherited = os.dup(tun.fd)
    tun.close()
    kernel.reap()
    assert "utun8" in kernel.interfaces
    os.close(inherited)
    kernel.reap()
    assert "utun8" not in kernel.interfaces


@pytest.mark.parametrize(
    ("name", "call", "code", "text"),
    [
        ("", "connect_control", errno.EPERM, "needs root"),
        ("", "ioctl", errno.ENOENT, "no utun"),
        ("utun2", "", 0, "in use"),
        ("tun0", "", 0, "utun and a number"),
        ("", "control_socket", errno.EMFILE, "cannot be opened"),
    ],
)
def test_failure_is_one_sentence_and_leaves_nothing(kernel: Kernel, name: str, call: str, code: int, text: str) -> None:
    if call:
        kernel.refuse[call] = code
    before = kernel.leftovers()
    with pytest.raises(TunError, match=text) as caught:
        open_utun(name, mtu=1500)
    assert caught.value.not_permitted == (code == errno.EPERM)
    assert kernel.leftovers() == before


def test_kernel_without_the_option_hands_over_one_packet_at_a_time(kernel: Kernel) -> None:
    kernel.refuse["set_option"] = errno.ENOPROTOOPT
    tun = open_utun("", mtu=1500)
    assert tun.read is os.readv
    tun.close()


# batches


def recvmsg_x(fd: int, messages: int, count: int) -> int:
    """The system call: fills one struct msghdr_x after the other, and refuses what the kernel refuses."""
    got = 0
    for i in range(count):
        at = messages + i * 56
        name, _, vectors, number, control, _, flags, length = struct.unpack("=QI4xQi4xQIiQ", ctypes.string_at(at, 56))
        assert (name, number, control, flags, length) == (0, 1, 0, 0, 0), "zeroed before each call"
        base, size = struct.unpack("=QQ", ctypes.string_at(vectors, 16))
        try:
            packet = os.read(fd, size)
        except BlockingIOError:
            break
        ctypes.memmove(base, packet, len(packet))
        ctypes.memmove(at + 48, struct.pack("=Q", len(packet)), 8)
        got += 1
    if not got:
        raise BlockingIOError(errno.EAGAIN, "nothing")
    return got


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends[1].setblocking(False)
    yield ends
    for end in ends:
        end.close()


def read_all(reader: BatchReader, fd: int) -> list[bytes]:
    packets = []
    while True:
        target = bytearray(100)
        try:
            length = reader(fd, [memoryview(target)])
        except BlockingIOError:
            return packets
        packets.append(bytes(target[:length]))


def test_batches_give_every_packet_once_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    wire, tun = pair
    reader = BatchReader(recvmsg_x, 60, 4)
    for round_ in range(3):
        sent = [bytes((round_, i)) * (i + 1) for i in range(11)]
        for packet in sent:
            wire.send(packet)
        assert read_all(reader, tun.fileno()) == sent


def test_packets_that_are_kept_are_told(pair: tuple[socket.socket, socket.socket]) -> None:
    wire, tun = pair
    reader = BatchReader(recvmsg_x, 60, 4)
    for i in range(5):
        wire.send(bytes((i,)))
    kept = []
    for _ in range(5):
        reader(tun.fileno(), [memoryview(bytearray(8))])
        kept.append(reader.kept)
    assert kept == [3, 2, 1, 0, 0]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_plain_reads_take_over_where_the_kernel_refuses(pair: tuple[socket.socket, socket.socket], code: int) -> None:
    wire, tun = pair
    calls = []

    def refuses(fd: int, messages: int, count: int) -> int:
        calls.append(count)
        raise OSError(code, "no")

    reader = BatchReader(refuses, 60, 4)
    for i in range(3):
        wire.send(bytes((i,)))
    assert read_all(reader, tun.fileno()) == [b"\0", b"\1", b"\2"]
    assert calls == [4]


@pytest.mark.parametrize(("mtu", "batches"), [(1500, True), (9000, True), (65535, False)])
def test_batches_are_for_small_packets(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, mtu: int, batches: bool
) -> None:
    monkeypatch.setattr(system, "batch_receiver", lambda: recvmsg_x)
    tun = open_utun("", mtu=mtu)
    kernel.wire(tun.name).send(b"\0\0\0\2E packet")
    target = bytearray(100)
    length = tun.read(tun.fd, [memoryview(target)])
    assert target[:length] == b"\0\0\0\2E packet"
    assert (tun.features, tun.kept()) == (("batches",) if batches else (), 0)
    tun.close()

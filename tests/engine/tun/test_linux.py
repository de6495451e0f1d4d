"""Real tun devices in a namespace of their own, read and written by hand."""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from fcntl import ioctl

import pytest

from engine.tun import Offload, TunDevice, TunError, open_tun
from engine.tun.linux import _LADDER, _grant_offload
from shared.wire.checksum import checksum, pseudo_header_sum
from shared.wire.virtio import F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_UDP_L4, HEADER, HEADER_LEN
from tests.support.netns import Namespace, ip, namespace

pytestmark = pytest.mark.e2e

LOCAL, REMOTE = "10.9.0.1", "10.9.0.2"
MTU = 1500
MSS = 1400
HAS_USO = tuple(int(number) for number in os.uname().release.split(".")[:2]) >= (6, 2)
UDP_SEGMENT = 103  # include/uapi/linux/udp.h
TUNGETIFF = 0x800454D2  # include/uapi/linux/if_tun.h


@pytest.fixture
def lone() -> Iterator[Namespace]:
    with namespace("lone") as made:
        yield made


def opened(offload: Offload) -> TunDevice:
    """A tun of the namespace the caller is in, up, with REMOTE behind it."""
    tun = open_tun(mtu=MTU, offload=offload)
    ip("addr", "add", LOCAL, "peer", REMOTE, "dev", tun.name)
    ip("link", "set", tun.name, "up", "mtu", str(MTU))
    return tun


def read_packet(tun: TunDevice, protocol: int) -> tuple[tuple[int, ...], bytes]:
    """Return (virtio header, packet) of the next IPv4 packet of `protocol`; the header is () without offload."""
    while True:
        ready, _, _ = select.select([tun.fd], [], [], 5)
        assert ready, "no packet came out of the tun"
        data = os.read(tun.fd, 70_000)
        header = tuple(HEADER.unpack_from(data)) if tun.offload else ()
        packet = data[HEADER_LEN:] if tun.offload else data
        if packet[0] >> 4 == 4 and packet[9] == protocol:
            return header, packet


def syn_ack(syn: bytes) -> bytes:
    """An IPv4 packet that accepts the connection of `syn`, with a large window and an MSS of MSS bytes."""
    source_port, destination_port, sequence = struct.unpack_from("!HHI", syn, 20)
    # MSS, then window scale 10 and a NOP (RFC 9293, 3.2; RFC 7323, 2.2)
    options = struct.pack("!BBHBBBB", 2, 4, MSS, 3, 3, 10, 1)
    head = struct.pack("!HHIIBBHHH", destination_port, source_port, 7, sequence + 1, 7 << 4, 0x12, 65535, 0, 0)
    tcp = bytearray(head + options)
    source, destination = socket.inet_aton(REMOTE), socket.inet_aton(LOCAL)
    tcp[16:18] = checksum(tcp, pseudo_header_sum(source, destination, 6, len(tcp))).to_bytes(2, "big")
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source + destination)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header + tcp)


FEATURES: dict[Offload, tuple[str, ...]] = {
    "auto": ("csum", "tso4", "tso6", "tso_ecn", "uso4", "uso6"),
    "uso": ("csum", "tso4", "tso6", "tso_ecn", "uso4", "uso6"),
    "tso": ("csum", "tso4", "tso6", "tso_ecn"),
    "csum": ("csum",),
    "none": (),
    "no-header": (),
}


@pytest.mark.parametrize("offload", FEATURES)
def test_open_with_offload(lone: Namespace, offload: Offload) -> None:
    with lone.entered():
        tun = opened(offload)
        try:
            assert tun.features == tuple(name for name in FEATURES[offload] if HAS_USO or "uso" not in name)
            assert tun.offload == (offload != "no-header")
            assert not os.get_blocking(tun.fd)
            check_datagram(tun)
            check_tcp_segments(tun)
            if "uso4" in tun.features:
                check_datagram_segments(tun)
        finally:
            tun.close()


def check_datagram(tun: TunDevice) -> None:
    """A datagram of this machine carries just the pseudo-header sum if, and only if, checksums are ours to skip."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (REMOTE, 53))
    header, packet = read_packet(tun, socket.IPPROTO_UDP)
    addresses = pseudo_header_sum(packet[12:16], packet[16:20], 17, 13)
    if "csum" in tun.features:
        assert header[0] & F_NEEDS_CSUM
        assert int.from_bytes(packet[26:28], "big") == addresses
    else:
        assert not header or not header[0] & F_NEEDS_CSUM
        assert checksum(packet[20:], addresses) == 0
    assert packet[28:] == b"hello"


def check_tcp_segments(tun: TunDevice) -> None:
    """Bulk data comes in segments of many times the MSS if, and only if, TSO is on."""
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex((REMOTE, 80)) == errno.EINPROGRESS
        header, syn = read_packet(tun, socket.IPPROTO_TCP)
        os.write(tun.fd, bytes(HEADER_LEN if tun.offload else 0) + syn_ack(syn))
        _, writable, _ = select.select([], [client], [], 5)
        assert writable, "the SYN-ACK written to the tun was not taken"
        client.send(bytes(100_000))
        header, packet = read_packet(tun, socket.IPPROTO_TCP)
        while len(packet) == 40:  # the ACK of the handshake
            header, packet = read_packet(tun, socket.IPPROTO_TCP)
        if "tso4" in tun.features:
            assert header[1] == GSO_TCPV4
            assert header[3] == MSS
            assert len(packet) > MTU
        else:
            assert not header or header[1] == GSO_NONE
            assert len(packet) == 40 + MSS
        # Without lingering: the peer in this test answers nothing more.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def check_datagram_segments(tun: TunDevice) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sender.sendto(bytes(3000), (REMOTE, 443))
    header, packet = read_packet(tun, socket.IPPROTO_UDP)
    assert header[1] == GSO_UDP_L4
    assert header[3] == 1000
    assert len(packet) == 28 + 3000


def test_ladder_steps_down_past_what_the_kernel_refuses(lone: Namespace) -> None:
    unknown = 0x4000_0000  # no TUN_F_ of any kernel so far
    with lone.entered():
        tun = open_tun(mtu=MTU)
        try:
            assert _grant_offload(tun.fd, (_LADDER[0] | unknown, _LADDER[1] | unknown, _LADDER[2], 0)) == _LADDER[2]
            with pytest.raises(OSError, match="Invalid argument"):
                _grant_offload(tun.fd, (unknown,))
        finally:
            tun.close()


def test_kernel_picks_free_names(lone: Namespace) -> None:
    with lone.entered():
        first, second = open_tun(mtu=MTU), open_tun(mtu=MTU)
        try:
            assert (first.name, second.name) == ("tun0", "tun1")
            request = bytearray(40)
            ioctl(second.fd, TUNGETIFF, request)
            assert request.startswith(b"tun1\0")
        finally:
            first.close()
            second.close()
        assert "tun" not in ip("-br", "link"), "the interfaces go with their descriptors"


def test_name_in_use(lone: Namespace) -> None:
    with lone.entered():
        tun = open_tun("mine", mtu=MTU)
        try:
            with pytest.raises(TunError, match="'mine' is in use"):
                open_tun("mine", mtu=MTU)
        finally:
            tun.close()
        tun.close()  # harmless


def test_name_of_something_else(lone: Namespace) -> None:
    with lone.entered(), pytest.raises(TunError, match="'lo' cannot be used: the name belongs to something"):
        open_tun("lo", mtu=MTU)


def test_name_too_long() -> None:
    with pytest.raises(TunError, match="too long: at most 15 bytes"):
        open_tun("a-very-long-name", mtu=MTU)


def test_persistent_tun_is_taken_over(lone: Namespace) -> None:
    with lone.entered():
        ip("tuntap", "add", "kept", "mode", "tun")
        tun = open_tun("kept", mtu=MTU)
        assert tun.name == "kept"
        assert "tso4" in tun.features
        tun.close()
        assert "kept" in ip("-br", "link")


def test_not_permitted(lone: Namespace) -> None:
    with lone.entered():
        os.seteuid(65534)  # without root's capabilities, until it is set back
        try:
            with pytest.raises(TunError, match="needs root or the capability CAP_NET_ADMIN") as caught:
                open_tun(mtu=MTU)
        finally:
            os.seteuid(0)
    assert caught.value.not_permitted

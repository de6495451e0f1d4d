"""A bad link between two namespaces: the kernel of the test machines may have no netem, and its loss rules know no bit flips.

    namespace `apps`                            namespace of the engine, which forwards
    programs                                    engine's tun, uplink
    10.77.0.2/30      wire ══ relay process ══ wire      10.77.0.1/30
    2001:db8:77::2/64                                     2001:db8:77::1/64
    default routes via the other end

Both ends are plain tuns with an MTU of 1500 bytes and without virtio header: what the relay reads are the packets as they would
be on a cable, checksums filled in and nothing larger than the MTU. What it writes is forwarded into the engine's tun without
the kernel's word for the checksum, so that the engine's own verification is all that stands between a flipped bit and the data.

The two directions have random generators of their own, and every packet takes the same number of draws from its one: with the
same seed, the n-th packet of a direction always meets the same fate.
"""

import errno
import heapq
import math
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path

import msgspec

from engine.tun.linux import open_linux_tun
from tests.support.netns import Namespace, ip

__all__ = ["APPS_V4", "APPS_V6", "MTU", "ROUTER_V4", "ROUTER_V6", "Counts", "Impairment", "Lane", "Wire", "wire"]

APPS_V4, ROUTER_V4 = "10.77.0.2", "10.77.0.1"
APPS_V6, ROUTER_V6 = "2001:db8:77::2", "2001:db8:77::1"

MTU = 1500  # bytes
QUEUE_LENGTH = 8192  # packets between the kernel and the relay; more than any window here, so that only the relay loses
QUEUE_DELAY_MAX = 0.1  # seconds that a packet may wait for a link with a rate, before it is dropped
_ROOT = Path(__file__).parents[2]  # from where the package `tests` is found
BATCH = 64  # packets read from one end before the other gets its turn


class Impairment(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to packets, in each direction. Probabilities of a packet; times in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    flip: float = 0.0
    """One bit, anywhere in the packet."""
    reorder: float = 0.0
    """Held back by `reorder_delay`, so that later ones overtake it."""
    reorder_delay: float = 0.007
    delay: float = 0.005
    jitter: float = 0.0
    """The delay grows by up to so much, differently for each packet; the order stays."""
    rate: float | None = None
    """Bytes per second; None: as fast as the relay can."""


class Counts(msgspec.Struct):
    """Packets of one direction."""

    arrived: int = 0
    lost: int = 0
    duplicated: int = 0
    flipped: int = 0
    reordered: int = 0
    overflowed: int = 0
    """Dropped at the queue of a link with a rate."""
    refused: int = 0
    """Flipped so that the kernel saw no IP version in them: it takes no such packet from a tun."""


class Lane:
    """One direction: packets go in, and come out again when their time has come. Does no I/O."""

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.counts = Counts()
        self._impairment = impairment
        self._random = random.Random(seed)
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._number = count()  # keeps packets that are due at the same time in order
        self._sent_at = self._due_at = -math.inf  # when the newest packet had left for the link, and will arrive

    @property
    def next_at(self) -> float:
        """When the next packet is due, or infinity."""
        return self._in_flight[0][0] if self._in_flight else math.inf

    def put(self, packet: bytes, now: float) -> None:
        """A packet enters at time `now`."""
        impairment, counts, draw = self._impairment, self.counts, self._random.random
        is_lost, is_duplicated, is_flipped, is_late = (
            draw() < impairment.loss, draw() < impairment.duplicate, draw() < impairment.flip, draw() < impairment.reorder,
        )  # fmt: skip
        bit, jitter = int(draw() * len(packet) * 8), draw() * impairment.jitter
        counts.arrived += 1
        if is_lost:
            counts.lost += 1
            return
        self._sent_at = max(self._sent_at, now)
        if impairment.rate is not None:
            if self._sent_at - now > QUEUE_DELAY_MAX:
                counts.overflowed += 1
                return
            self._sent_at += len(packet) / impairment.rate
        if is_flipped:
            counts.flipped += 1
            damaged = bytearray(packet)
            damaged[bit // 8] ^= 1 << bit % 8
            packet = bytes(damaged)
        due_at = self._due_at = max(self._due_at, self._sent_at + impairment.delay + jitter)
        if is_late:
            counts.reordered += 1
            due_at += impairment.reorder_delay
        heapq.heappush(self._in_flight, (due_at, next(self._number), packet))
        if is_duplicated:
            counts.duplicated += 1
            heapq.heappush(self._in_flight, (due_at, next(self._number), packet))

    def take(self, now: float) -> Iterator[bytes]:
        """Give the packets that are due, and forget them."""
        while self._in_flight and self._in_flight[0][0] <= now:
            yield heapq.heappop(self._in_flight)[2]


class Wire:
    """A wire in use. When it is gone, `up` (from the programs) and `down` tell what became of the packets."""

    def __init__(self) -> None:
        self.up = Counts()
        self.down = Counts()


@contextmanager
def wire(apps: Namespace, router: Namespace, impairment: Impairment, seed: int = 0) -> Iterator[Wire]:
    """Lay the wire at the top of this module, and let `router` forward, as long as the body runs."""
    with ExitStack() as opened:
        fds = [opened.enter_context(_tun(namespace)) for namespace in (apps, router)]
        arguments = [*map(str, fds), str(seed), msgspec.json.encode(impairment).decode()]
        relay = subprocess.Popen(
            [sys.executable, "-m", "tests.support.wire", *arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )
    made = Wire()
    with relay:
        try:
            _configure(apps, (f"{APPS_V4}/30", f"{APPS_V6}/64"), (ROUTER_V4, ROUTER_V6))
            _configure(router, (f"{ROUTER_V4}/30", f"{ROUTER_V6}/64"))
            with _forwarding(router):
                yield made
        finally:
            report, _ = relay.communicate()  # closes its stdin, which ends it
    made.up, made.down = msgspec.json.decode(report, type=tuple[Counts, Counts])


@contextmanager
def _tun(namespace: Namespace) -> Iterator[int]:
    """Open the tun of one end; it lives on in the relay process, which inherits the descriptor."""
    with namespace.entered():
        tun = open_linux_tun("wire", mtu=MTU, offload="no-header")
    with closing(tun):
        yield tun.fd


def _configure(namespace: Namespace, addresses: tuple[str, str], gateways: tuple[str, str] | None = None) -> None:
    v4, v6 = addresses
    with namespace.entered():
        ip("link", "set", "wire", "txqueuelen", str(QUEUE_LENGTH), "addrgenmode", "none", "up")
        ip("addr", "add", v4, "dev", "wire")
        ip("addr", "add", v6, "dev", "wire", "nodad")
        for gateway in gateways or ():
            ip("route", "add", "default", "via", gateway, "dev", "wire")


@contextmanager
def _forwarding(router: Namespace) -> Iterator[None]:
    switches = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
    with router.entered():
        before = [switch.read_text() for switch in switches]
        for switch in switches:
            switch.write_text("1")
    try:
        yield
    finally:
        with router.entered():
            for switch, value in zip(switches, before, strict=True):
                switch.write_text(value)


# The relay process


def _relay(apps: int, router: int, up: Lane, down: Lane, end: int) -> None:
    """Carry packets between two tuns until the descriptor `end` is at its end of file."""
    directions = {apps: (up, router), router: (down, apps)}
    while True:
        timeout = min(up.next_at, down.next_at) - time.monotonic()
        # select, not poll: its time-out is in microseconds, where poll's would round every delay up to a millisecond.
        readable, _, _ = select.select([apps, router, end], [], [], None if timeout == math.inf else max(timeout, 0))
        if end in readable:
            return
        now = time.monotonic()
        for source in readable:
            _read(source, directions[source][0], now)
        for lane, sink in directions.values():
            _write(sink, lane, now)


def _read(source: int, lane: Lane, now: float) -> None:
    for _ in range(BATCH):
        try:
            packet = os.read(source, MTU)
        except BlockingIOError:
            return
        lane.put(packet, now)


def _write(sink: int, lane: Lane, now: float) -> None:
    for packet in lane.take(now):
        try:
            os.write(sink, packet)
        except OSError as error:
            # EIO: the other end is not up yet. EINVAL: see Counts.refused.
            if error.errno not in (errno.EINVAL, errno.EIO):
                raise
            lane.counts.refused += 1


def _main(apps: str, router: str, seed: str, impairment_json: str) -> None:
    impairment = msgspec.json.decode(impairment_json, type=Impairment)
    up, down = Lane(impairment, 2 * int(seed)), Lane(impairment, 2 * int(seed) + 1)
    _relay(int(apps), int(router), up, down, sys.stdin.fileno())
    sys.stdout.buffer.write(msgspec.json.encode((up.counts, down.counts)))


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""A bad link between two namespaces: the kernel of the test machines may have no netem, and its loss rules know no bit flips.

    namespace `apps`                            namespace of the engine, which forwards
    programs                                    engine's tun, uplink
    10.77.0.2/30      wire ══ relay process ══ wire      10.77.0.1/30
    2001:db8:77::2/64                                     2001:db8:77::1/64
    default routes via the other end

Both ends are plain tuns with an MTU of 1500 bytes and without virtio header: what the relay reads are the packets as they would
be on a cable, checksums filled in and nothing larger than the MTU. What it writes is forwarded into the engine's tun without
the kernel's word for the checksum, so that the engine's own verification is all that stands between a flipped bit and the data.

What happens to the packets of each direction is a Lane's (lane.py).
"""

import errno
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from engine.tun.linux import open_linux_tun
from tests.support.forwarding import forwarding
from tests.support.lane import Counts, Impairment, Lane
from tests.support.netns import Namespace, ip

__all__ = ["APPS_V4", "APPS_V6", "MTU", "ROUTER_V4", "ROUTER_V6", "Wire", "wire"]

APPS_V4, ROUTER_V4 = "10.77.0.2", "10.77.0.1"
APPS_V6, ROUTER_V6 = "2001:db8:77::2", "2001:db8:77::1"

MTU = 1500  # bytes
QUEUE_LENGTH = 8192  # packets between the kernel and the relay; more than any window here, so that only the relay loses
_ROOT = Path(__file__).parents[2]  # from where the package `tests` is found
BATCH = 64  # packets read from one end before the other gets its turn


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
            with forwarding(router):
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

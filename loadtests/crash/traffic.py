"""Flows through an engine, which carry bytes both ways while something happens to it; every byte is compared."""

import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.crash.report import Finding
from tests.support.engine import Engine, running_engine
from tests.support.netns import TARGET_V4, Topology, topology
from tests.support.sockets import flow, listening, pseudo_random, receive
from tests.support.upstreams import embedded

__all__ = ["FLOWS", "WAIT", "Pair", "Stage", "close", "stage", "surviving", "under_flows"]

FLOWS = 100
PIECE = 256 * 1024
"""Bytes that each surviving flow carries in each direction while the fault happens."""
AFTER = 4096
"""And when all is well again."""
WAIT = 60.0  # seconds; only turns a hang into a finding
Pair = tuple[socket.socket, socket.socket]


@dataclass(frozen=True)
class Stage:
    """What a fault happens to."""

    net: Topology
    engine: Engine
    server: socket.socket
    """A target that listens."""
    pool: ThreadPoolExecutor
    work: Path
    """A folder for files."""

    def flows(self, count: int) -> list[Pair]:
        """Open flows; return both ends of each: the application's and the target's."""
        return [patient(flow(self.net, self.server)) for _ in range(count)]

    def flows_by_fate(self, count: int) -> tuple[list[Pair], list[Pair]]:
        """Open flows; return those of worker 1, and those of worker 0, which is going to die."""
        kept: list[Pair] = []
        doomed: list[Pair] = []
        for _ in range(count):
            before = self.engine.status().workers[0].tcp_opened
            (pair,) = self.flows(1)
            is_kept = self.engine.status().workers[0].tcp_opened == before
            (kept if is_kept else doomed).append(pair)
        return kept, doomed


def patient(pair: Pair) -> Pair:
    """Let both ends wait for as long as a fault may last."""
    for sock in pair:
        sock.settimeout(WAIT)
    return pair


@contextmanager
def stage(
    *options: str, proxy: str | None = "embedded", workers: int = 2, flows: int = FLOWS, **start: object
) -> Iterator[Stage]:
    """Namespaces, the embedded proxy, an engine that is started with `options`, a target.

    Nothing may go past the proxy. `proxy` None: there is one in the options. `start`: see running_engine.
    """
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunloom-crash-")))
        url = stack.enter_context(embedded(net.internet)) if proxy == "embedded" else proxy
        engine = stack.enter_context(
            running_engine(net.client, work / "run", *options, proxy=url, workers=workers, **start)  # type: ignore[arg-type]
        )
        net.refuse_direct()
        server = stack.enter_context(listening(net, TARGET_V4))
        pool = stack.enter_context(ThreadPoolExecutor(4 * flows))
        yield Stage(net, engine, server, pool, work)
        assert net.direct_packets() == 0, "packets went past the proxy"


@contextmanager
def surviving(finding: Finding, pool: ThreadPoolExecutor, pairs: Sequence[Pair]) -> Iterator[Callable[[], None]]:
    """These flows carry bytes while the body runs, and after it; what arrives as it was sent is counted.

    Gives what waits until all that is under way has arrived.
    """
    ends = [end for pair in pairs for end in (pair, pair[::-1])]
    finding.flows_to_survive += len(pairs)
    during = [_carry(pool, sender, receiver, PIECE) for sender, receiver in ends]
    yield lambda: _wait(during)
    whole = [future.result() for future in during]
    after = [_carry(pool, sender, receiver, AFTER) for sender, receiver in ends]
    both = [(early, late.result()) for early, late in zip(whole, after, strict=True)]
    finding.bytes_verified += sum(early + late for early, late in both)
    finding.bytes_damaged += (PIECE + AFTER) * len(both) - sum(early + late for early, late in both)
    is_whole = [both_parts == (PIECE, AFTER) for both_parts in both]
    finding.flows_survived += sum(up and down for up, down in zip(is_whole[::2], is_whole[1::2], strict=True))


def _wait(futures: Sequence[Future[int]]) -> None:
    for future in futures:
        future.result()


def _carry(pool: ThreadPoolExecutor, sender: socket.socket, receiver: socket.socket, size: int) -> Future[int]:
    """Send `size` bytes; the result is how many of them have arrived as they were: all or none."""
    text = pseudo_random(size, sender.fileno())

    def check() -> int:
        try:
            return size if receive(receiver, size) == text else 0
        except OSError:
            return 0

    pool.submit(sender.sendall, text)
    return pool.submit(check)


def close(pairs: Sequence[Pair]) -> None:
    """Close both ends of flows."""
    for pair in pairs:
        for sock in pair:
            sock.close()


def under_flows(
    fault: Callable[[Stage], None], *options: str, times: tuple[int, int] = (3, 20), others_only: bool = False
) -> Callable[[Finding, bool], None]:
    """Return the play of a row: `fault` happens and is mended under flows, all of which must survive.

    `others_only`: those of worker 1 must. `times`: quick, and whole.
    """

    def play(finding: Finding, quick: bool) -> None:
        with stage(*options) as made:
            for _ in range(times[0] if quick else times[1]):
                kept, doomed = made.flows_by_fate(FLOWS) if others_only else (made.flows(FLOWS), [])
                with surviving(finding, made.pool, kept), finding.recovering():
                    fault(made)
                finding.times += 1
                close(kept + doomed)

    return play

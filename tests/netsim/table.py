"""What the stack reaches over simulated paths. The committed table (docs/netsim.md) is made of it, and a test makes it again.

A change of the code that changes the table is committed with the new one, so that a review sees what it does.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from tests.netsim.joined import Joined, join
from tests.support.lane import Impairment
from tests.support.stack_bed import pattern

__all__ = ["DOCUMENT", "document"]

DOCUMENT = Path(__file__).parents[2] / "docs/netsim.md"
SIZE = 1_000_000  # bytes of a transfer
PATIENCE = 600.0  # simulated seconds
DATA = pattern(SIZE)

LOSSES = (0.0, 0.01, 0.05, 0.1, 0.2)
DELAYS = (0.002, 0.01, 0.05, 0.2)  # seconds, both ways together
BUFFERS = (64 * 1024, 512 * 1024, 4 * 1024 * 1024)  # bytes
RATE = 12.5e6  # bytes per second

NARROW = 4e6
QUEUES = (0.001, 0.005, 0.02, 0.1)  # seconds

DAMAGES = {
    "nothing": Impairment(),
    "reordering, 25 % by 7 ms": Impairment(reorder=0.25),
    "duplicates, 10 %": Impairment(duplicate=0.1),
    "flipped bits, 3 %": Impairment(flip=0.03),
    "jitter, 5 ms": Impairment(jitter=0.005),
    "5 % loss, 1 % duplicates, 0.1 % flips, 25 % reordering": Impairment(
        loss=0.05, duplicate=0.01, flip=0.001, reorder=0.25
    ),
}

HEAD = f"""# The stack on simulated paths

Two of our stacks joined by a simulated path (`tests/netsim`), {SIZE:,} bytes from one to the other. Time and chance are simulated
too, so the figures are the same on every machine: `python -m tests.netsim` prints this file, `--write` renews it, a test fails
when it is out of date. Each cell: goodput in MB/s, and the bytes sent again in % of the transfer.
"""


def document() -> str:
    """Return the whole text of the committed file. Raises AssertionError when a byte does not arrive, or comes twice."""
    return "\n".join([HEAD, *_losses(), *_queues(), *_damages(), ""])


def _losses() -> Iterator[str]:
    yield f"## Loss x round trip x buffer\n\nLoss both ways, at random. {RATE / 1e6:g} MB/s; the queue takes 20 ms.\n"
    columns = [f"{buffer // 1024} KiB" for buffer in BUFFERS]
    yield from _table(["loss", "round trip", *columns], (_loss_row(*case) for case in product(LOSSES, DELAYS)))


def _loss_row(loss: float, rtt: float) -> list[str]:
    path = Impairment(loss=loss, delay=rtt / 2, rate=RATE, queue=0.02)
    cells = [_transfer(join(path, path, buffer=buffer)) for buffer in BUFFERS]
    return [f"{loss:.0%}", f"{rtt * 1000:g} ms", *cells]


def _queues() -> Iterator[str]:
    yield f"\n## Queue x round trip\n\nNo loss but that of the queue before a link of {NARROW / 1e6:g} MB/s.\n"
    columns = [f"{queue * 1000:g} ms" for queue in QUEUES]
    yield from _table(["round trip", *columns], (_queue_row(rtt) for rtt in DELAYS))


def _queue_row(rtt: float) -> list[str]:
    paths = [Impairment(delay=rtt / 2, rate=NARROW, queue=queue) for queue in QUEUES]
    return [f"{rtt * 1000:g} ms", *(_transfer(join(path, path)) for path in paths)]


def _damages() -> Iterator[str]:
    yield "\n## Other damage\n\nRound trip 10 ms, no other limit.\n"
    versions: list[Callable[[Impairment], Joined]] = [
        lambda path: join(path, path),
        lambda path: join(path, path, version=6),
        lambda path: join(path, path, offload=False),
        lambda path: join(path, path, mtu=9000, path_mtu=1400),
    ]
    rows = ([name, *(_transfer(joined(path)) for joined in versions)] for name, path in DAMAGES.items())
    yield from _table(["", "IPv4", "IPv6", "no offload", "MTU 9000, of the path 1400"], rows)


def _transfer(network: Joined) -> str:
    begin = network.now
    network.far.upstream.send(DATA, begin, shutdown=True)
    arrived = network.near.upstream
    network.run(PATIENCE, lambda: arrived.eof)
    assert arrived.received == DATA
    seconds = network.now - begin
    again = network.text_sent[network.down] / SIZE - 1
    return f"{SIZE / seconds / 1e6:.2f} ({again:.1%})"


def _table(columns: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"

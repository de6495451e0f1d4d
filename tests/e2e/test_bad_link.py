"""Programs behind a link that loses, repeats, damages and reorders packets: every byte arrives, once and in order.

The programs' end of each connection is the kernel's TCP, the other end the engine's stack; the link is tests/support/wire.py.
`python -m loadtests.badlink` measures the whole matrix, beside the kernel alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engine import Bed, Engine
from tests.support.lane import Counts, Impairment
from tests.support.netns import TARGET_V4, TARGET_V6, Namespace, namespace
from tests.support.transfer import download, upload
from tests.support.web import Blob, make_blob, web_server
from tests.support.wire import MTU, wire

pytestmark = pytest.mark.e2e

SIZE = 3_000_000  # bytes; two thousand packets
HOSTS = {"ipv4": TARGET_V4, "ipv6": TARGET_V6}
MIX = Impairment(loss=0.05, duplicate=0.01, flip=0.001, reorder=0.25)

Carry = Callable[[Impairment, str, str], tuple[Counts, Counts]]

every_way = pytest.mark.parametrize("direction", ["up", "down"])
every_family = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Blob:
    """What is carried."""
    return make_blob(tmp_path_factory.mktemp("blob") / "3MB", SIZE)


@pytest.fixture(scope="module")
def apps(bed: Bed) -> Iterator[Namespace]:
    """Where the programs run; the wire leads from here to the engine's namespace."""
    with namespace("apps") as made:
        yield made


@pytest.fixture
def carry(bed: Bed, apps: Namespace, blob: Blob, tmp_path: Path) -> Carry:
    """Carries the blob over a link; returns what became of the packets of the data, and of those with their ACKs."""

    def over(impairment: Impairment, direction: str, host: str) -> tuple[Counts, Counts]:
        with wire(apps, bed.net.client, impairment, seed=1) as used, web_server(bed.net.internet, host, blob) as url:
            done = download(apps, url, tmp_path) if direction == "down" else upload(apps, url, tmp_path, blob)
        assert done.sha256 == blob.sha256
        data, acks = (used.down, used.up) if direction == "down" else (used.up, used.down)
        assert data.arrived >= SIZE / MTU and acks.arrived, "it did not go over the wire"
        return data, acks

    return over


def checksum_drops(engine: Engine) -> int:
    """Packets that the engine has dropped for their checksum."""
    return sum(worker.drops.get("checksum", 0) for worker in engine.status().workers)


@every_way
@every_family
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_loss(carry: Carry, loss: float, host: str, direction: str) -> None:
    data, _ = carry(Impairment(loss=loss), direction, host)
    assert data.lost >= data.arrived * loss / 2


@every_way
@every_family
def test_reordering(carry: Carry, host: str, direction: str) -> None:
    data, acks = carry(Impairment(reorder=0.25), direction, host)
    assert data.reordered > data.arrived / 8 and acks.reordered


@every_way
@every_family
def test_flipped_bits(bed: Bed, carry: Carry, host: str, direction: str) -> None:
    before = checksum_drops(bed.engine)
    data, acks = carry(Impairment(flip=0.03), direction, host)
    to_engine = acks if direction == "down" else data
    # The kernel drops what it finds damaged in an IPv4 header; TCP's checksum is the engine's to verify.
    assert 0 < checksum_drops(bed.engine) - before <= to_engine.flipped


@every_way
@every_family
def test_all_together(carry: Carry, host: str, direction: str) -> None:
    data, acks = carry(MIX, direction, host)
    assert data.lost and data.reordered and data.duplicated
    assert acks.lost and acks.reordered


@every_family
def test_download_through_a_narrow_link(carry: Carry, host: str) -> None:
    """4 MB/s and a queue that overflows: the engine is to find the rate."""
    data, _ = carry(Impairment(rate=4e6, jitter=0.002), "down", host)
    assert data.overflowed < data.arrived / 4

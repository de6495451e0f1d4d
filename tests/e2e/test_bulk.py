"""Large transfers arrive whole: curl with hashes, many flows at once, and iperf3."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from engine.demo.service import Service
from tests.support.engine import Bed
from tests.support.netns import TARGET_V4, TARGET_V6
from tests.support.upstreams import needs
from tests.support.web import Blob, make_blob, web_server

pytestmark = pytest.mark.e2e

GIB = 1024**3
HOSTS = {"ipv4": TARGET_V4, "ipv6": TARGET_V6}


@pytest.fixture(scope="module")
def gibibyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blob]:
    """A file of 1 GiB."""
    blob = make_blob(tmp_path_factory.mktemp("blob") / "1GiB", GIB)
    yield blob
    blob.path.unlink()


@pytest.fixture(scope="module")
def small_blob(tmp_path_factory: pytest.TempPathFactory) -> Blob:
    """A file of 20 MB."""
    return make_blob(tmp_path_factory.mktemp("blob") / "20MB", 20_000_000)


def download(bed: Bed, url: str) -> str:
    """Return the SHA-256 of what curl has received."""
    script = 'curl -sS --fail --max-time 110 "$1" | sha256sum'
    needs("curl", "curl")
    return bed.net.client.run("bash", "-o", "pipefail", "-c", script, "sh", url).split()[0]


def upload(bed: Bed, url: str, blob: Blob) -> str:
    """Return the SHA-256 of what the server has received from curl."""
    return bed.net.client.run(needs("curl", "curl"), "-sS", "--fail", "--max-time", "110", "-T", str(blob.path), url)


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_1_gib_down(bed: Bed, gibibyte: Blob, host: str) -> None:
    with web_server(bed.net.internet, host, gibibyte) as url:
        assert download(bed, url) == gibibyte.sha256


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_1_gib_up(bed: Bed, gibibyte: Blob, host: str) -> None:
    with web_server(bed.net.internet, host, gibibyte) as url:
        assert upload(bed, url, gibibyte) == gibibyte.sha256


def test_16_flows_at_once_in_both_families_and_directions(bed: Bed, small_blob: Blob) -> None:
    with (
        web_server(bed.net.internet, TARGET_V4, small_blob) as url_v4,
        web_server(bed.net.internet, TARGET_V6, small_blob) as url_v6,
        ThreadPoolExecutor(16) as pool,
    ):
        hashes = []
        for _ in range(4):
            for url in url_v4, url_v6:
                hashes.append(pool.submit(download, bed, url))
                hashes.append(pool.submit(upload, bed, url, small_blob))
        assert {future.result() for future in hashes} == {small_blob.sha256}


@pytest.mark.parametrize("reverse", [[], ["-R"]], ids=["up", "down"])
@pytest.mark.parametrize("flows", ["1", "16"])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_iperf3_tcp(bed: Bed, host: str, flows: str, reverse: list[str]) -> None:
    end = iperf3(bed, host, "-P", flows, "-t", "1", *reverse)["end"]
    assert len(end["streams"]) == int(flows)
    assert end["sum_received"]["bytes"] > 0


@pytest.mark.parametrize("reverse", [[], ["-R"]], ids=["up", "down"])
@pytest.mark.parametrize("flows", ["1", "16"])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_iperf3_udp(bed: Bed, host: str, flows: str, reverse: list[str]) -> None:
    end = iperf3(bed, host, "-u", "-b", "1M", "-l", "1000", "-P", flows, "-t", "1", *reverse)["end"]
    assert len(end["streams"]) == int(flows)
    for stream in end["streams"]:
        counts = stream["udp"]
        # A slow machine may lose some; a flow that carries nothing, or little, is broken.
        assert counts["packets"] > 0 and counts["lost_packets"] < counts["packets"] / 2


def iperf3(bed: Bed, host: str, *options: str) -> dict[str, object]:
    """Run iperf3 against a server on `host`; return its report."""
    program = needs("iperf3", "iperf3")
    with iperf3_server(bed, program, host):
        return dict(json.loads(bed.net.client.run(program, "-J", "-c", host, *options)))


@contextmanager
def iperf3_server(bed: Bed, program: str, host: str) -> Iterator[None]:
    with bed.net.internet.entered():
        service = Service("iperf3", [program, "-s", "-B", host, "--forceflush"])
    with service:
        service.wait_for("listening", 10)
        yield

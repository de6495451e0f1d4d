"""Discovery among real proxies: what each speaks, which one `engine start` without --proxy takes, and what it says."""

import asyncio
import subprocess
from pathlib import Path

import msgspec
import pytest

from engine.discovery import Access, Speech
from engine.discovery.probe import probe
from engine.proxy_url import parse_proxy_url
from engine.users import WORKER_UID
from tests.support import upstreams
from tests.support.engine import ENGINE, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, Topology
from tests.support.upstreams import CREDENTIALS, Upstream, embedded, microsocks, needs, targets, v2ray

pytestmark = pytest.mark.e2e

LOCAL = "127.0.0.1"
OPEN, PASSWORD, REFUSED = Access.OPEN, Access.PASSWORD, Access.REFUSED

SPEECHES: dict[str, tuple[Upstream, Speech, Speech]] = {
    "embedded": (lambda internet, _: embedded(internet), Speech(OPEN, udp=True), Speech(OPEN, udp=True)),
    "dante": (upstreams.dante, Speech(OPEN, udp=True), Speech(OPEN, udp=True)),
    "dante-password": (upstreams.dante_with_password, Speech(OPEN, udp=True), Speech(PASSWORD)),
    "microsocks-password": (upstreams.microsocks, Speech(OPEN), Speech(PASSWORD)),
    "ssh-D": (upstreams.openssh, Speech(OPEN), Speech(OPEN)),
    "v2ray": (upstreams.v2ray, Speech(OPEN, udp=True), Speech(OPEN, udp=True)),
    "v2ray-without-udp": (upstreams.v2ray_without_udp, Speech(OPEN), Speech(OPEN)),
    "tinyproxy-password": (upstreams.tinyproxy, Speech(http=OPEN), Speech(http=PASSWORD)),
}


@pytest.mark.parametrize(("start", "with_password", "without"), SPEECHES.values(), ids=SPEECHES)
def test_real_proxy_is_known_by_what_it_speaks(
    net: Topology, tmp_path: Path, start: Upstream, with_password: Speech, without: Speech
) -> None:
    with start(net.internet, tmp_path) as url, net.client.entered():
        proxy = parse_proxy_url(url)
        assert asyncio.run(probe(proxy, timeout=6.0)) == with_password
        stranger = msgspec.structs.replace(proxy, username=None, password=None)
        assert asyncio.run(probe(stranger, timeout=6.0)) == without
        if with_password != without:
            wrong = msgspec.structs.replace(proxy, password="wrong")
            found = asyncio.run(probe(wrong, timeout=6.0))
            assert REFUSED in (found.socks5, found.http)


def test_web_server_is_no_proxy(net: Topology) -> None:
    with targets(net.internet), net.client.entered():
        found = asyncio.run(probe(parse_proxy_url(f"http://{TARGET_V4}:80"), timeout=6.0))
    assert found.trouble == "speaks no protocol of proxies"


def test_proxy_with_udp_is_taken_and_one_with_password_is_named(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    with (
        targets(net.internet),
        microsocks(net.client, tmp_path, host=LOCAL, port=1080),
        microsocks(net.client, tmp_path, host=LOCAL, port=7890, open_to_all=True),
        v2ray(net.client, tmp_path, host=LOCAL, port=44444),
        running_engine(net.client, run_dir, proxy=None) as engine,
    ):
        assert engine.status().proxy == f"socks5://{LOCAL}:44444"
        assert f"{LOCAL}:44444 (port 44444): SOCKS5 with UDP, held by v2ray (pid " in engine.log
        assert (
            f"{LOCAL}:7890 (port 7890, usual for Clash, mihomo): SOCKS5 without UDP, held by microsocks" in engine.log
        )
        assert (
            f"{LOCAL}:1080 (port 1080, usual for V2RayU, shadowsocks, ssh -D): SOCKS5, which wants a password"
            in engine.log
        )
        assert f"using socks5://{LOCAL}:44444" in engine.log


def test_environment_is_trusted_more_than_ports(
    net: Topology, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{LOCAL}:9")
    monkeypatch.setenv("all_proxy", f"http://{CREDENTIALS}@{PROXY_V4}:1080")
    with (
        targets(net.internet),
        microsocks(net.internet, tmp_path),
        v2ray(net.client, tmp_path, host=LOCAL, port=1080),
        running_engine(net.client, run_dir, proxy=None) as engine,
    ):
        net.refuse_direct()
        assert f"using socks5://alice:***@{PROXY_V4}:1080 (all_proxy)" in engine.log
        assert f"{LOCAL}:9 (http_proxy): nobody listens there" in engine.log
        monkeypatch.delenv("http_proxy")
        monkeypatch.delenv("all_proxy")
        assert net.client.run(needs("curl", "curl"), "-sS", "--max-time", "20", f"http://{TARGET_V4}/page")
        assert net.direct_packets() == 0


def start_in_vain(net: Topology, run_dir: Path) -> str:
    """Run `engine start` without proxy, which must exit 2; return what it says."""
    command = net.client.command(*ENGINE, "start", "--run-dir", str(run_dir))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_proxy_with_password_alone_is_not_taken(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    with microsocks(net.client, tmp_path, host=LOCAL):
        said = start_in_vain(net, run_dir)
    assert f"TUNLOOM_PROXY=socks5://USER:PASSWORD@{LOCAL}:1080" in said


def test_port_of_the_engine_itself_is_not_taken(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    with microsocks(net.client, tmp_path, host=LOCAL, open_to_all=True, uid=WORKER_UID):
        said = start_in_vain(net, run_dir)
    assert "the engine's own, held by microsocks" in said
    assert "no proxy was found" in said


def test_environment_that_names_a_dead_proxy_is_told(
    net: Topology, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5://{LOCAL}:1080")
    said = start_in_vain(net, run_dir)
    assert f"ALL_PROXY leads to socks5://{LOCAL}:1080, which is no working proxy (nobody listens there)" in said

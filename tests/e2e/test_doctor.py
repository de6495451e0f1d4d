"""`engine doctor` on machines with something wrong, and its advice taken."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import ENGINE, running_engine
from tests.support.netns import CLIENT_V4, PROXY_V4, Topology, ip, wait_until
from tests.support.upstreams import PASSWORD, USER, embedded, microsocks

pytestmark = pytest.mark.e2e

NOBODY = f"socks5://{PROXY_V4}:1080"


class Doctor:
    """Asks the doctor, and finds what it says."""

    def __init__(self, net: Topology, run_dir: Path) -> None:
        self.net = net
        self.run_dir = run_dir
        self.exit_code = -1

    def examine(self, *options: str, wrapper: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        command = (*wrapper, *ENGINE, "doctor", "--json", "--run-dir", str(self.run_dir), *options)
        done = subprocess.run(self.net.client.command(*command), capture_output=True, text=True)
        assert done.stderr == ""
        self.exit_code = done.returncode
        answer = json.loads(done.stdout)
        assert answer["ok"] == (self.exit_code == 0)
        findings: list[dict[str, Any]] = answer["findings"]
        for finding in findings:
            assert finding["mend"] or finding["level"] == "ok", finding
        return findings

    def bad(self, *options: str, wrapper: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """What is worse than a note: (check, level). Programs of this machine, outside of the namespace, are notes."""
        found = self.examine(*options, wrapper=wrapper)
        return [(item["check"], item["level"]) for item in found if item["level"] in ("warning", "error")]

    def only(self, check: str, level: str, *options: str, wrapper: tuple[str, ...] = ()) -> dict[str, Any]:
        """The one finding of this kind."""
        found = self.examine(*options, wrapper=wrapper)
        (finding,) = (item for item in found if (item["check"], item["level"]) == (check, level))
        return finding


@pytest.fixture
def doctor(net: Topology, run_dir: Path) -> Doctor:
    return Doctor(net, run_dir)


@pytest.fixture
def proxy(net: Topology) -> Iterator[str]:
    with embedded(net.internet) as url:
        yield url


def test_all_is_well(doctor: Doctor, proxy: str, net: Topology) -> None:
    before = net.client.snapshot()
    assert doctor.bad("--proxy", proxy) == []
    assert doctor.exit_code == 0
    checks = {item["check"] for item in doctor.examine("--proxy", proxy)}
    assert checks >= {
        "rights",
        "confinement",
        "tun",
        "offload",
        "limits",
        "leftovers",
        "rp_filter",
        "resolver",
        "ipv6",
        "proxy",
        "udp",
    }
    assert net.client.snapshot() == before


def test_for_people(net: Topology, run_dir: Path, proxy: str) -> None:
    shown = net.client.run(*ENGINE, "doctor", "--run-dir", str(run_dir), "--proxy", proxy)
    assert f"ok  proxy: the proxy {proxy} answers and lets us in\n" in shown
    assert shown.endswith("0 errors, 0 warnings\n")


def test_nobody_listens_at_the_proxy(doctor: Doctor) -> None:
    finding = doctor.only("proxy", "error", "--proxy", NOBODY)
    assert "nobody listens there" in finding["text"]
    assert doctor.exit_code == 1


def test_proxy_wants_another_password(doctor: Doctor, net: Topology) -> None:
    with embedded(net.internet, password=PASSWORD):
        assert "wants a password" in doctor.only("proxy", "error", "--proxy", NOBODY)["text"]
        wrong = f"socks5://{USER}:n0t-it@{PROXY_V4}:1080"
        finding = doctor.only("proxy", "error", "--proxy", wrong)
        assert "refuses the password" in finding["text"]
        assert "n0t-it" not in json.dumps(finding)
        assert "TUNLOOM_PROXY" in doctor.only("password", "note", "--proxy", wrong)["mend"]


def test_proxy_without_udp(doctor: Doctor, net: Topology, tmp_path: Path) -> None:
    with microsocks(net.internet, tmp_path) as url:
        assert doctor.bad("--proxy", url) == [("udp", "warning")]
    assert doctor.exit_code == 0


def test_another_protocol(doctor: Doctor, proxy: str) -> None:
    finding = doctor.only("proxy", "error", "--proxy", proxy.replace("socks5", "http"))
    assert "speaks socks5, not http" in finding["text"]


def test_what_a_crash_has_left(doctor: Doctor, net: Topology, run_dir: Path, proxy: str) -> None:
    with running_engine(net.client, run_dir, "--kill-switch", proxy=proxy) as engine:
        assert doctor.bad("--proxy", proxy) == []
        guardian = engine.status().guardian_pid
        assert guardian is not None
        os.kill(engine.pid, signal.SIGSTOP)  # or it would start another guardian
        os.kill(guardian, signal.SIGKILL)
        engine.signal(signal.SIGKILL)
        engine.exit_code()
        wait_until(lambda: not net.client.run("ip", "link").count("tun"), what="the end of the tun, and of the workers")
        finding = doctor.only("leftovers", "error", "--proxy", proxy)
        assert "its kill switch lets nothing out" in finding["text"]
        sudo, engine_command, *options = finding["mend"].strip("`").split()
        assert (sudo, engine_command) == ("sudo", "engine")
        net.client.run(*ENGINE, *options)
        assert doctor.bad("--proxy", proxy) == []


def test_rules_of_another_program(doctor: Doctor, net: Topology, proxy: str) -> None:
    with net.client.entered():
        ip("-6", "rule", "add", "priority", "9003", "lookup", "100")
    finding = doctor.only("conflict", "error", "--proxy", proxy)
    assert "IPv6 routing rule at priority 9003" in finding["text"]
    net.client.run(*finding["mend"].split("`")[1].removeprefix("sudo ").split())
    assert doctor.bad("--proxy", proxy) == []


def test_exit_node_of_tailscale(doctor: Doctor, net: Topology, proxy: str) -> None:
    with net.client.entered():
        ip("route", "add", "default", "via", PROXY_V4, "table", "52")
        ip("rule", "add", "priority", "5270", "lookup", "52")
    assert (
        "Tailscale's exit node sends all IPv4 traffic to uplink"
        in doctor.only("conflict", "error", "--proxy", proxy)["text"]
    )


def test_tailscale_without_an_exit_node_is_no_conflict(doctor: Doctor, net: Topology, proxy: str) -> None:
    with net.client.entered():
        ip("route", "add", "100.64.0.0/10", "dev", "uplink", "table", "52")
        ip("rule", "add", "priority", "5270", "lookup", "52")
    assert doctor.bad("--proxy", proxy) == []


def test_tun_of_another_program(doctor: Doctor, net: Topology, proxy: str) -> None:
    with net.client.entered():
        ip("tuntap", "add", "sb0", "mode", "tun")
        ip("tuntap", "add", "vm0", "mode", "tap")
    texts = [item["text"] for item in doctor.examine("--proxy", proxy)]
    assert "sb0 is the tun of another program" in texts
    assert not any("vm0" in text for text in texts)


def test_strict_reverse_path_filter(doctor: Doctor, net: Topology, proxy: str) -> None:
    with net.client.entered():
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")
    assert "the engine sets 2 (loose) for its tun" in doctor.only("rp_filter", "ok", "--proxy", proxy)["text"]
    read_only = ("unshare", "--mount", "sh", "-c", 'mount --bind -o ro /proc/sys /proc/sys && exec "$@"', "sh")
    finding = doctor.only("rp_filter", "error", "--proxy", proxy, wrapper=read_only)
    assert "--sysctl net.ipv4.conf.all.rp_filter=2" in finding["mend"]


def test_ipv6_past_the_tun(doctor: Doctor, tmp_path: Path, proxy: str) -> None:
    config = tmp_path / "config.json"
    outbound = {"type": "socks", "tag": "out", "server": PROXY_V4, "server_port": 1080}
    tun: dict[str, Any] = {"type": "tun", "address": ["172.19.0.1/30"], "auto_route": True}
    config.write_text(json.dumps({"inbounds": [tun], "outbounds": [outbound]}))
    assert doctor.bad("-c", str(config)) == [("ipv6", "warning")]
    config.write_text(json.dumps({"inbounds": [tun | {"strict_route": True}], "outbounds": [outbound]}))
    assert doctor.bad("-c", str(config)) == []


def test_not_root(doctor: Doctor, proxy: str) -> None:
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    bad = doctor.bad("--proxy", proxy, wrapper=nobody)
    assert ("rights", "error") in bad and ("tun", "error") in bad
    assert doctor.exit_code == 1


def test_without_the_capability(doctor: Doctor, proxy: str) -> None:
    wrapper = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    finding = doctor.only("rights", "error", "--proxy", proxy, wrapper=wrapper)
    assert "--cap-add NET_ADMIN" in finding["mend"]


def test_few_files(doctor: Doctor, proxy: str) -> None:
    finding = doctor.only("limits", "warning", "--proxy", proxy, wrapper=("prlimit", "--nofile=256:256"))
    assert "only 256 files may be open" in finding["text"]


def test_configuration_with_an_error_is_exit_2(net: Topology, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"outbonds": []}')
    done = subprocess.run(net.client.command(*ENGINE, "doctor", "-c", str(config)), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{config}:1:2" in done.stderr


def test_neighbour_as_proxy_is_not_taken_for_local(doctor: Doctor) -> None:
    finding = doctor.only("proxy", "error", "--proxy", f"socks5://{CLIENT_V4}:1")
    assert finding["mend"] == "is the port right, and the proxy running there?"

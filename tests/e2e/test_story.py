"""The user's story, as a test: a program signs in through its browser, and no program knows of any proxy.

client                                                            internet, reachable only through the vmess server
  the program: listens on a random port of 127.0.0.1               accounts.example: HTTPS at TARGET_V4 and TARGET_V6,
  the browser: calls it back with a code                           found by the DNS server 8.8.8.8
  the program: exchanges the code at https://accounts.example
  V2Ray: SOCKS at 127.0.0.1:1080, UDP off ── vmess ──────────────► SERVER
  the engine, with the article's configuration
"""

import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.engine import running_engine
from tests.support.netns import (
    CLIENT_V4,
    OTHER_TARGET_V4,
    PROXY_V4,
    TARGET_V4,
    TARGET_V6,
    Namespace,
    Topology,
    wait_until,
)
from tests.support.sockets import connect, tcp_server
from tests.support.upstreams import VMESS_ID, needs, v2ray_process, vmess_server

pytestmark = pytest.mark.e2e

ARTICLE = Path(__file__).parents[1] / "engine" / "config" / "article.json"
SERVER = OTHER_TARGET_V4
NAME_SERVER = "8.8.8.8"
NAME = "accounts.example"
ONLY_VMESS = f"""
table inet story {{
    counter leaked {{ }}
    chain from_client {{
        type filter hook prerouting priority filter; policy accept;
        iifname != "downlink" accept
        ip daddr {{ {PROXY_V4}, 224.0.0.0/4 }} accept
        ip daddr {SERVER} tcp dport 8443 accept
        ip6 daddr {{ fe80::/10, ff00::/8 }} accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        counter name leaked drop
    }}
}}
"""

PROGRAM = """
import http.server, json, secrets, ssl, subprocess, sys, urllib.request
class Callback(http.server.BaseHTTPRequestHandler):
    code = None
    def do_GET(self):
        Callback.code = self.path.partition("code=")[2]
        self.send_response(200); self.end_headers(); self.wfile.write(b"you may close this window")
    def log_message(self, *args): pass
with http.server.HTTPServer(("127.0.0.1", 0), Callback) as server:
    browser = subprocess.Popen(["curl", "-sS", f"http://127.0.0.1:{server.server_port}/oauth2callback?code={secrets.token_hex(8)}"],
                               stdout=subprocess.DEVNULL)
    server.handle_request()
    browser.wait()
context = ssl.create_default_context(cafile=sys.argv[1])
with urllib.request.urlopen("https://accounts.example/token", data=Callback.code.encode(), context=context, timeout=20) as answer:
    assert json.load(answer)["token_for"] == Callback.code
print("signed in")
"""


class _Token(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        code = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{{"token_for": "{code}"}}'.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def accounts(internet: Namespace, work: Path) -> Iterator[Path]:
    """The HTTPS server, at its IPv4 and its IPv6 address; yields the certificate to trust."""
    certificate, key = work / "cert.pem", work / "key.pem"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN={NAME}"
    extra = ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer((TARGET_V4, 443), _Token, bind_and_activate=False)
    server.socket.close()
    server.socket = context.wrap_socket(tcp_server(internet, TARGET_V4, 443), server_side=True)
    server.socket.settimeout(None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield certificate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def name_server(internet: Namespace) -> Iterator[None]:
    """dnsmasq as 8.8.8.8, which knows the name, with an IPv6 address that must not be used."""
    internet.run("ip", "addr", "add", f"{NAME_SERVER}/32", "dev", "lo")
    addresses = [f"--address=/{NAME}/{TARGET_V4}", f"--address=/{NAME}/{TARGET_V6}"]
    options = [
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
    ]
    listen = [f"--listen-address={NAME_SERVER}", "--bind-interfaces"]
    with internet.entered():
        service = Service("dnsmasq", [needs("dnsmasq", "dnsmasq-base"), *options, *listen, *addresses])
    with service:
        wait_until(lambda: NAME_SERVER in internet.run("ss", "-Hltn", "sport = :53"), what="the name server")
        yield


@contextmanager
def resolver(client: Namespace) -> Iterator[None]:
    """Programs ask the router of the LAN, as DHCP told them; nothing answers there."""
    directory = Path("/etc/netns") / client.name
    directory.mkdir(parents=True)
    try:
        (directory / "resolv.conf").write_text(f"nameserver {PROXY_V4}\noptions timeout:3 attempts:1\n")
        yield
    finally:
        shutil.rmtree(directory)


@contextmanager
def world(net: Topology, work: Path) -> Iterator[Path]:
    """Everything but the engine; yields the certificate to trust."""
    inbound = {"listen": "127.0.0.1", "port": "1080", "protocol": "socks", "settings": {"auth": "noauth", "udp": False}}
    user = {"id": VMESS_ID, "alterId": 0, "security": "auto"}
    outbound = {"protocol": "vmess", "settings": {"vnext": [{"address": SERVER, "port": 8443, "users": [user]}]}}
    with ExitStack() as stack:
        certificate = stack.enter_context(accounts(net.internet, work))
        stack.enter_context(name_server(net.internet))
        stack.enter_context(resolver(net.client))
        stack.enter_context(vmess_server(net.internet, work, host=SERVER))
        stack.enter_context(v2ray_process(net.client, work, inbound, outbound, host="127.0.0.1", port=1080))
        net.internet.run("nft", "-f", "-", input=ONLY_VMESS)
        yield certificate


def sign_in(net: Topology, certificate: Path) -> str:
    """Run the program; return the last line that it prints."""
    command = net.client.command(sys.executable, "-c", PROGRAM, str(certificate))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]


def leaked(net: Topology) -> int:
    """Return how many packets of the client were neither for the vmess server nor for the LAN."""
    words = net.internet.run("nft", "list", "counter", "inet", "story", "leaked").split()
    return int(words[words.index("packets") + 1])


def test_signing_in_fails_without_the_engine_and_succeeds_with_it(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(ARTICLE.read_text().replace("3.xxx.xx.82", SERVER))
    with world(net, tmp_path) as certificate:
        assert "Error" in sign_in(net, certificate)
        before = leaked(net)
        with running_engine(net.client, run_dir, "-c", str(config)):
            assert sign_in(net, certificate) == "signed in"
            with pytest.raises(OSError):  # the tun has no IPv6 address: strict_route closes the family
                connect(net.client, (TARGET_V6, 443))
            with tcp_server(net.internet, PROXY_V4, 7070) as printer:  # the LAN stays direct
                app = connect(net.client, (PROXY_V4, 7070))
                peer, (source, _) = printer.accept()
                with app, peer:
                    assert source == CLIENT_V4
            assert leaked(net) == before

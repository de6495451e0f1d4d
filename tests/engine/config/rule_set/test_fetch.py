"""engine/config/rule_set/fetch.py: files of remote rule-sets, from a server on loopback, directly and through proxies."""

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.config.load import load
from engine.config.rule_set.fetch import FetchError, Wanted, fetch, wanted_files
from engine.demo.service import Service
from shared.config import ProxyConfig
from tests.engine.config.conftest import BASE
from tests.engine.config.rule_set.test_srs import SAMPLE
from tests.engine.test_cli import engine


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        if self.path == "/moved.srs":
            self.send_response(302)
            self.send_header("Location", "/a.srs?raw=1")
            self.end_headers()
        elif self.path == "/circle.srs":
            self.send_response(301)
            self.send_header("Location", self.path)
            self.end_headers()
        elif self.path.startswith("/a.srs"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SAMPLE)
        elif self.path == "/page.srs":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>sign in first</html>")
        elif self.path == "/a.json":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": 1, "rules": []}')
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.seen = []  # type: ignore[attr-defined]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with serving() as made:
        yield made


@pytest.fixture
def socks() -> Iterator[int]:
    """The port of a SOCKS5 server."""
    with Service(
        "proxy", [sys.executable, "-P", "-m", "engine.demo.socks_server", "--listen", "127.0.0.1:0"]
    ) as service:
        yield int(service.wait_for("listening", 20).rsplit(":", 1)[1])


def url(server: ThreadingHTTPServer, path: str, scheme: str = "http", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{host}:{server.server_port}{path}"


def wanted(at: str, directory: Path, *, form: str = "binary", proxy: ProxyConfig | None = None) -> Wanted:
    return Wanted("s", at, directory / "sets" / "s.srs", form, proxy)


def test_directly_and_by_a_redirect(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    one = wanted(url(server, "/moved.srs"), tmp_path)
    assert fetch(one) == len(SAMPLE)
    assert one.path.read_bytes() == SAMPLE
    assert [path.name for path in one.path.parent.iterdir()] == ["s.srs"]
    assert server.seen == ["/moved.srs", "/a.srs?raw=1"]  # type: ignore[attr-defined]


def test_through_a_proxy(server: ThreadingHTTPServer, socks: int, tmp_path: Path) -> None:
    assert fetch(wanted(url(server, "/a.srs"), tmp_path, proxy=ProxyConfig("socks5", "127.0.0.1", socks))) == len(
        SAMPLE
    )
    with pytest.raises(FetchError, match="cannot be fetched"):
        fetch(wanted(url(server, "/a.srs"), tmp_path, proxy=ProxyConfig("socks5", "127.0.0.1", 1)))


def test_over_tls_and_only_with_a_certificate(socks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as server:
        one = wanted(
            url(server, "/a.srs", "https", "localhost"), tmp_path, proxy=ProxyConfig("socks5", "127.0.0.1", socks)
        )
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(one)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(one) == len(SAMPLE)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/none.srs", "the server says 404"),
        ("/circle.srs", "more than 5 redirects"),
        ("/page.srs", "is no rule-set: the file does not begin with SRS"),
    ],
)
def test_what_is_no_rule_set_replaces_nothing(
    server: ThreadingHTTPServer, tmp_path: Path, path: str, part: str
) -> None:
    one = wanted(url(server, path), tmp_path)
    one.path.parent.mkdir()
    one.path.write_bytes(b"as it was")
    with pytest.raises(FetchError, match=part):
        fetch(one)
    assert one.path.read_bytes() == b"as it was"


@pytest.mark.parametrize(
    "at", ["ftp://a.example/x", "a.srs", "http://", "http://127.0.0.1:1/x", "http://[x/y", "http://a:b/"]
)
def test_what_cannot_be_fetched(tmp_path: Path, at: str) -> None:
    with pytest.raises(FetchError):
        fetch(wanted(at, tmp_path))


HERE = ("env",)
"""The command runs in this network namespace, where the server is."""


def configuration(directory: Path, *rule_sets: dict[str, Any], **route: Any) -> Path:
    path = directory / "config.json"
    named = [{"type": "remote", **rule_set} for rule_set in rule_sets]
    config = {**BASE, "route": {"rule_set": named, **route}, "engine": {"rule_set_dir": str(directory / "sets")}}
    path.write_text(json.dumps(config))
    return path


def test_the_proxy_is_that_of_the_configuration(tmp_path: Path) -> None:
    sets = [
        {"tag": "a", "url": "https://a.example/a.srs"},
        {"tag": "b", "url": "https://a.example/b.json", "download_detour": "direct"},
    ]
    first, second = wanted_files([configuration(tmp_path, *sets)])
    assert (str(first.proxy), first.format, first.path) == (
        "socks5://127.0.0.1:1080",
        "binary",
        tmp_path / "sets" / "a.srs",
    )
    assert (second.proxy, second.format, second.path) == (None, "source", tmp_path / "sets" / "b.json")
    assert wanted_files([configuration(tmp_path, sets[0], final="direct")])[0].proxy is None


def test_command(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    sets = [{"tag": "a", "url": url(server, "/a.srs")}, {"tag": "b", "url": url(server, "/a.json")}]
    path = configuration(tmp_path, *sets, final="direct")
    assert engine("check", "-c", str(path), before=HERE).returncode == 2
    result = engine("fetch", "-c", str(path), before=HERE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"a: {tmp_path}/sets/a.srs ({len(SAMPLE)} bytes)"
    assert {rule_set.tag for rule_set in load(path).policy.route.rule_sets} == {"a", "b"}
    result = engine(
        "fetch", "-c", str(configuration(tmp_path, {"tag": "c", "url": url(server, "/c.srs")}, final="direct"))
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "engine: 1 of 1 rule-sets could not be fetched"

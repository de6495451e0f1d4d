"""Clients of this machine, whatever their version, against a listening socket on loopback that never answers."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete, Sniffed, sniff_stream

NAME = "www.example.org"
TIMEOUT = 20.0  # seconds until a client that sends nothing is a failure

CLIENTS = {
    "curl-https": (["curl", "-sk", "--connect-to", f"{NAME}:443:127.0.0.1:{{port}}", f"https://{NAME}/"], "tls", NAME),
    "curl-http": (["curl", "-s", "--connect-to", f"{NAME}:80:127.0.0.1:{{port}}", f"http://{NAME}/"], "http", NAME),
    "curl-http2": (
        ["curl", "-s", "--http2-prior-knowledge", "--connect-to", f"{NAME}:80:127.0.0.1:{{port}}", f"http://{NAME}/"],
        "http",
        NAME,
    ),
    "openssl": (["openssl", "s_client", "-connect", "127.0.0.1:{port}", "-servername", NAME], "tls", NAME),
    "ssh": (["ssh", "-F", "none", "-o", "BatchMode=yes", "-p", "{port}", "127.0.0.1"], "ssh", None),
    "dig-tcp": (["dig", "+tcp", "@127.0.0.1", "-p", "{port}", NAME], "dns", None),
}


@contextmanager
def client(command: list[str], port: int, home: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [word.format(port=port) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home)},
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("command", "protocol", "domain"), CLIENTS.values(), ids=CLIENTS)
def test_stream_of(command: list[str], protocol: str, domain: str | None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, client(command, server.getsockname()[1], tmp_path):
        server.settimeout(TIMEOUT)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            data = b""
            while isinstance(result := sniff_stream(data, SNIFFERS), Incomplete):
                piece = connection.recv(65536)
                assert piece, "the client hung up"
                data += piece
    assert isinstance(result, Sniffed)
    assert (result.protocol, result.domain) == (protocol, domain)
    if protocol == "ssh":
        assert result.client is not None and result.client.startswith("OpenSSH_")


@pytest.mark.parametrize(
    ("command", "protocol"),
    [
        (["dig", "@127.0.0.1", "-p", "{port}", NAME], "dns"),
        (["openssl", "s_client", "-dtls", "-connect", "127.0.0.1:{port}"], "dtls"),
    ],
    ids=["dig", "openssl-dtls"],
)
def test_datagram_of(command: list[str], protocol: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TIMEOUT)
        with client(command, server.getsockname()[1], tmp_path):
            datagram = server.recv(65536)
    assert DatagramSniffer(SNIFFERS).feed(datagram) == Sniffed(protocol)

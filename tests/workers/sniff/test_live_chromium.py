"""Chromium of this machine, alone in a namespace, against sockets that never answer: its large ClientHello, over TCP and QUIC."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.browser import chromium
from tests.support.netns import Namespace, namespace
from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete, Sniffed, sniff_stream

pytestmark = pytest.mark.e2e

NAME = "www.example.org"
TIMEOUT = 60.0  # seconds until a browser that sends nothing is a failure
SEGMENT = 1400
"""Bytes: with its post-quantum key share a ClientHello is longer."""


@pytest.fixture
def alone() -> Iterator[Namespace]:
    """A namespace with nothing but lo."""
    with namespace("browser") as made:
        yield made


@contextmanager
def server(alone: Namespace, kind: socket.SocketKind) -> Iterator[tuple[socket.socket, str]]:
    """A socket on lo, and the option that leads to it."""
    with alone.entered():
        sock = socket.socket(socket.AF_INET, kind)
    with sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT)
        yield sock, f"--host-resolver-rules=MAP {NAME}:443 127.0.0.1:{sock.getsockname()[1]}"


def test_tls_in_more_than_one_segment(alone: Namespace, tmp_path: Path) -> None:
    with (
        server(alone, socket.SOCK_STREAM) as (sock, option),
        chromium(alone, tmp_path, option, "--disable-quic") as page,
    ):
        sock.listen()
        page.evaluate(f"void fetch('https://{NAME}/')")
        connection, _ = sock.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            data = b""
            while isinstance(result := sniff_stream(data, SNIFFERS), Incomplete):
                piece = connection.recv(SEGMENT)
                assert piece, "the browser hung up"
                data += piece
    assert isinstance(result, Sniffed)
    assert (result.protocol, result.domain) == ("tls", NAME)
    assert len(data) > SEGMENT


def test_quic(alone: Namespace, tmp_path: Path) -> None:
    force = f"--origin-to-force-quic-on={NAME}:443"
    sniffer = DatagramSniffer(SNIFFERS)
    with server(alone, socket.SOCK_DGRAM) as (sock, option), chromium(alone, tmp_path, option, force) as page:
        page.evaluate(f"void fetch('https://{NAME}/')")
        while isinstance(result := sniffer.feed(sock.recv(65536)), Incomplete):
            pass
    assert isinstance(result, Sniffed)
    assert (result.protocol, result.domain, result.client) == ("quic", NAME, "chromium")

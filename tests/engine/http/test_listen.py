"""engine/http/listen.py: what --metrics accepts, and that nobody is let in from outside without a secret."""

import socket
from collections.abc import Iterator

import pytest

from engine.http import HttpOptions
from engine.http.listen import DEFAULT_LISTEN, ListenError, is_loopback, listen, metrics_options, parse_listen


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody else listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
        (":9090", ("", 9090)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text, option="--metrics") == address


@pytest.mark.parametrize(
    "text", ["", "9464", "127.0.0.1", "127.0.0.1:", "host:99999", "host:-1", "host:http", "host:²"]
)
def test_what_is_no_host_and_port_is_one_sentence(text: str) -> None:
    with pytest.raises(ListenError, match=r"^--metrics: '.*' is not HOST:PORT, such as 127.0.0.1:9464$"):
        parse_listen(text, option="--metrics")


def test_ipv6_address_without_brackets_is_told_where_they_go() -> None:
    with pytest.raises(ListenError, match="stands in brackets"):
        parse_listen("::1:9464", option="--metrics")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "example.com", "localhost.example.com"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("address", ["0.0.0.0:1", ":1", "[::]:1", "gate.lan:1"])
def test_outside_loopback_a_secret_is_required(address: str) -> None:
    with pytest.raises(ListenError, match="only with a secret: set TUNLOOM_SECRET"):
        metrics_options(address, secret="")
    options = metrics_options(address, secret="x")
    assert options is not None and options.secret == "x"


def test_default_and_off() -> None:
    assert metrics_options(None, secret="") == HttpOptions(addresses=(("127.0.0.1", 9464),), is_named=False)
    assert metrics_options(DEFAULT_LISTEN, secret="") == HttpOptions(addresses=(("127.0.0.1", 9464),), is_named=True)
    assert metrics_options("off", secret="") is None


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("", 0), ("0.0.0.0", 0)])
def test_listens(address: tuple[str, int]) -> None:
    (listener,) = listen([address])
    with listener:
        port = listener.getsockname()[1]
        target = "::1" if address[0] == "::1" else "127.0.0.1"
        socket.create_connection((target, port), timeout=10).close()


def test_taken_port_is_one_sentence(taken: int) -> None:
    with pytest.raises(ListenError, match=rf"^metrics and API: another program listens at 127.0.0.1:{taken}$"):
        listen([("127.0.0.1", taken)])


def test_address_of_somebody_else_is_one_sentence() -> None:
    with pytest.raises(ListenError, match=r"^metrics and API: cannot listen at 203.0.113.77:0 \(.+\)$"):
        listen([("203.0.113.77", 0)])
    with pytest.raises(ListenError, match="is no address of this machine"):
        listen([("no.such.name.invalid", 0)])


def test_when_one_address_fails_none_stays_open(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ListenError):
        listen([("127.0.0.1", port), ("127.0.0.1", taken)])
    socket.create_server(("127.0.0.1", port)).close()

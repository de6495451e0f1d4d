"""engine/http/access.py: whose requests are served."""

import socket

import pytest

from engine.http.access import Access

OPEN = Access(secret="")
GUARDED = Access(secret="s3cret ü", origins=("https://board.example",), names=("gate.lan",))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9464", "localhost:9464", "[::1]:9464", "LOCALHOST", "192.0.2.1", socket.gethostname()]
)
def test_addresses_and_own_names_are_hosts(host: str) -> None:
    assert OPEN.check_source(host, None) is None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[::1",
        "a@b:c",
    ],
)
def test_other_names_are_refused(host: str | None) -> None:
    """DNS rebinding: the name of the page leads to us, but it is not ours."""
    refused = OPEN.check_source(host, None)
    assert refused is not None and refused.status == 403


def test_name_that_is_listened_at_is_ours() -> None:
    assert GUARDED.check_source("gate.lan:9464", None) is None
    assert OPEN.check_source("gate.lan:9464", None) is not None


@pytest.mark.parametrize(
    "origin",
    ["http://127.0.0.1:9464", "http://localhost:3000", "https://localhost", "http://[::1]:80", "http://192.0.2.1"],
)
def test_pages_of_this_machine_and_our_own_may_ask(origin: str) -> None:
    assert OPEN.check_source("192.0.2.1", origin) is None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "http://127.0.0.1.evil.example", "http://localhost.evil.example", "file://", "http://[",
     "http://192.0.2.1:81", "ftp://localhost", "chrome-extension://abc"],
)  # fmt: skip
def test_other_pages_may_not(origin: str) -> None:
    refused = OPEN.check_source("192.0.2.1", origin)
    assert refused is not None and refused.status == 403


def test_origins_of_the_configuration_may_ask() -> None:
    assert GUARDED.allows("https://board.example", "127.0.0.1")
    assert GUARDED.allows("HTTPS://BOARD.EXAMPLE", "127.0.0.1")
    assert not GUARDED.allows("http://board.example", "127.0.0.1")
    assert Access(secret="", origins=("*",)).allows("null", "127.0.0.1")


@pytest.mark.parametrize(
    ("authorization", "token"),
    [("Bearer s3cret ü", None), ("bearer s3cret ü", None), (None, "s3cret ü"), ("Basic eA==", "s3cret ü")],
)
def test_secret_lets_in(authorization: str | None, token: str | None) -> None:
    assert GUARDED.check_secret(authorization, token) is None


@pytest.mark.parametrize(
    ("authorization", "token"),
    [(None, None), ("", ""), ("Bearer", None), ("Bearer ", None), ("Bearer S3cret ü", None), ("s3cret ü", None),
     ("Bearer s3cret üx", None), (None, "s3cret"),
     ("Bearer \udcff\udcfe", None), ("Bearer wrong", "s3cret ü"), ("Basic s3cret ü", None)],
)  # fmt: skip
def test_anything_else_does_not(authorization: str | None, token: str | None) -> None:
    refused = GUARDED.check_secret(authorization, token)
    assert refused is not None and refused.status == 401


def test_without_a_secret_everybody_who_gets_here_is_let_in() -> None:
    assert OPEN.check_secret(None, None) is None
    assert OPEN.check_secret("Bearer whatever", "whatever") is None

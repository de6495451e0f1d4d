"""engine/run/session.py: the environment of the command; the rest is met in tests/e2e/test_run.py."""

import pwd

import pytest

from engine.run.session import command_environment


@pytest.mark.parametrize(
    ("value", "stays"),
    [
        ("http://127.0.0.1:7890", False),
        ("socks5://u:p@localhost:1080", False),
        ("127.0.0.1:8118", False),
        ("http://[::1]:3128/", False),
        ("http://proxy.example:3128", True),
        ("http://192.0.2.1:3128", True),
        ("", True),
        ("http://[broken", True),
    ],
)
def test_proxy_on_loopback_is_left_out(value: str, stays: bool) -> None:
    for name in "all_proxy", "HTTPS_PROXY":
        assert (name in command_environment({name: value, "PATH": "/bin"}, None)) is stays


def test_other_variables_stay() -> None:
    assert command_environment({"no_proxy": "127.0.0.1", "URL": "http://127.0.0.1/"}, None) == {
        "no_proxy": "127.0.0.1",
        "URL": "http://127.0.0.1/",
    }


def test_user_has_the_own_home() -> None:
    user = pwd.struct_passwd(("anna", "x", 1000, 1000, "", "/home/anna", "/bin/zsh"))
    environment = command_environment({"HOME": "/root", "LANG": "C"}, user)
    assert environment == {"HOME": "/home/anna", "USER": "anna", "LOGNAME": "anna", "SHELL": "/bin/zsh", "LANG": "C"}

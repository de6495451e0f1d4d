"""engine/discovery/environment.py: what variables mean, and whose environments are read."""

import os
import subprocess
from collections.abc import Mapping

import pytest

from engine.discovery import Candidate, Source
from engine.discovery import environment as under_test
from engine.discovery.environment import environment_candidates, parse_environment, parse_environment_file
from shared.config import ProxyConfig


def proxies(environment: Mapping[str, str]) -> list[str]:
    """The URLs that an environment names, in order."""
    candidates, _ = parse_environment(environment, "")
    assert all(candidate.source is Source.ENVIRONMENT for candidate in candidates)
    return [str(candidate.proxy) for candidate in candidates]


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("socks5://127.0.0.1:1080", "socks5://127.0.0.1:1080"),
        ("socks5h://127.0.0.1:1080/", "socks5://127.0.0.1:1080"),
        ("socks://127.0.0.1:1080", "socks5://127.0.0.1:1080"),
        ("socks4a://127.0.0.1:1080", "socks4://127.0.0.1:1080"),
        ("http://127.0.0.1:7890", "http://127.0.0.1:7890"),
        ("https://127.0.0.1:7890", "http://127.0.0.1:7890"),
        ("127.0.0.1:7890", "http://127.0.0.1:7890"),
        ("proxy.example", "http://proxy.example:1080"),
        ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
        ("http://[2001:db8::1]", "http://[2001:db8::1]:1080"),
        ("SOCKS5://u:p%40ss@h:1", "socks5://u:***@h:1"),
    ],
)
def test_value_is_read_as_curl_reads_it(value: str, url: str) -> None:
    assert proxies({"all_proxy": value}) == [url]


def test_lower_case_counts_first_and_the_general_variable_before_the_special() -> None:
    environment = {
        "HTTP_PROXY": "http://h:1",
        "https_proxy": "http://s:2",
        "HTTPS_PROXY": "http://not:3",
        "ALL_PROXY": "socks5://a:4",
        "no_proxy": "localhost",
        "SOCKS_PROXY": "",
    }
    assert proxies(environment) == ["socks5://a:4", "http://s:2", "http://h:1"]


def test_value_that_is_not_understood_is_remarked_without_its_password() -> None:
    candidates, remarks = parse_environment({"all_proxy": "ftp://u:s3cret@h:1"}, "of bash")
    assert candidates == []
    (remark,) = remarks
    assert remark.startswith("all_proxy of bash is not understood: 'ftp' is not a kind of proxy")
    assert "s3cret" not in remark and "--proxy" not in remark


def test_credentials_are_decoded() -> None:
    ((candidate,), _) = parse_environment({"all_proxy": "socks5://alice:p4ss%3Aw%40rd@127.0.0.1:1080"}, "")
    assert candidate.proxy == ProxyConfig("socks5", "127.0.0.1", 1080, "alice", "p4ss:w@rd")


def test_environment_file() -> None:
    text = "# comment\nPATH=/bin\nexport all_proxy='socks5://h:1'\n HTTP_PROXY = \"http://h:2\"\nbroken\n"
    assert parse_environment_file(text) == {"PATH": "/bin", "all_proxy": "socks5://h:1", "HTTP_PROXY": "http://h:2"}


@pytest.fixture
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in under_test.VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(under_test, "ETC_ENVIRONMENT", under_test.Path("/nonexistent"))
    return monkeypatch


def test_own_environment_comes_first_then_the_file_of_the_machine(
    no_proxy_variables: pytest.MonkeyPatch, tmp_path: under_test.Path
) -> None:
    file = tmp_path / "environment"
    file.write_text("all_proxy=socks5://machine:2\n")
    no_proxy_variables.setattr(under_test, "ETC_ENVIRONMENT", file)
    no_proxy_variables.setenv("all_proxy", "socks5://own:1")
    candidates, remarks = environment_candidates()
    assert [candidate.proxy.host for candidate in candidates] == ["own", "machine"]
    assert candidates[1].origin == f"all_proxy in {file}"
    assert remarks == []


def test_ancestors_are_not_asked_without_a_change_of_user(no_proxy_variables: pytest.MonkeyPatch) -> None:
    """What they had and we have not, somebody took away on purpose."""
    no_proxy_variables.setattr(under_test, "_environment_of", lambda pid: {"all_proxy": "socks5://ancestor:1"})
    assert environment_candidates() == ([], [])


def test_ancestors_are_asked_up_to_the_other_user(no_proxy_variables: pytest.MonkeyPatch) -> None:
    """engine <- sudo (root) <- bash (1000) <- terminal (1000)"""
    sudo, bash, terminal = os.getppid(), 70001, 70002
    no_proxy_variables.setattr(under_test.proc, "ancestors", lambda pid: [sudo, bash, terminal])
    other = os.geteuid() + 1000
    no_proxy_variables.setattr(under_test.proc, "uid_of", {sudo: os.geteuid(), bash: other, terminal: other}.get)
    no_proxy_variables.setattr(under_test, "_environment_of", lambda pid: {"all_proxy": f"socks5://of-{pid}:1"})
    candidates, _ = environment_candidates()
    assert [candidate.proxy.host for candidate in candidates] == [f"of-{sudo}", f"of-{bash}"]
    assert "which led to this command" in candidates[0].origin


@pytest.mark.e2e
def test_programs_of_the_user_behind_sudo_are_asked(no_proxy_variables: pytest.MonkeyPatch) -> None:
    user = "4321"
    command = ["setpriv", "--reuid", user, "--clear-groups", "sh", "-c", "echo; read line"]
    environment = {**os.environ, "all_proxy": "socks5://127.0.0.1:1080"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as desktop:
        assert desktop.stdin is not None and desktop.stdout is not None
        desktop.stdout.readline()
        no_proxy_variables.setenv("SUDO_UID", user)
        candidates, _ = environment_candidates()
        origin = f"all_proxy of sh (pid {desktop.pid}), of the user behind sudo"
        assert candidates == [Candidate(Source.ENVIRONMENT, origin, ProxyConfig("socks5", "127.0.0.1", 1080))]
        desktop.stdin.close()

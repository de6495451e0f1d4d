"""DNS through a running engine: dig, curl and dnsperf, with unbound behind the proxy, and what leaves the client's machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dns_servers import LAN_SERVER, OTHER_SERVER, PUBLIC_SERVER, lan, public_servers, with_resolver
from tests.support.engine import Bed
from tests.support.netns import TARGET_V4, TARGET_V6, Namespace
from tests.support.upstreams import needs, targets

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def servers(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The client's LAN, and unbound at the public addresses."""
    with lan(bed.net), public_servers(bed.net.internet, tmp_path_factory.mktemp("unbound")):
        yield


def dig(client: Namespace, server: str, *question: str) -> str:
    """What dig prints."""
    return client.run(needs("dig", "dnsutils"), "+tries=1", "+time=10", f"@{server}", *question)


def who(client: Namespace, server: str, *options: str) -> str:
    """Which server has answered."""
    return dig(client, server, "+short", *options, "who.example", "TXT").strip()


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize(
    ("server", "answers"),
    [(TARGET_V4, "target"), (TARGET_V6, "target"), (OTHER_SERVER, "other"), (PUBLIC_SERVER, "public")],
)
def test_a_public_server_is_asked_itself(bed: Bed, server: str, answers: str, transport: str) -> None:
    assert who(bed.net.client, server, transport) == f'"{answers}"'


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("server", [LAN_SERVER, "10.1.2.3", "198.18.0.2", "fdfe:dcba:9876::2"])
def test_in_place_of_a_private_server_a_public_one_is_asked(bed: Bed, server: str, transport: str) -> None:
    assert who(bed.net.client, server, transport) == '"public"'


def test_the_letters_are_repeated_as_they_were_written(bed: Bed) -> None:
    for _ in range(2):
        assert "WeB.ExAmple." in dig(bed.net.client, LAN_SERVER, "WeB.ExAmple", "A")


def test_ttl_of_a_kept_answer_is_what_is_left(bed: Bed) -> None:
    def ttl() -> int:
        match = re.search(
            r"^web\.example\.\s+(\d+)", dig(bed.net.client, OTHER_SERVER, "web.example", "AAAA"), re.MULTILINE
        )
        assert match is not None
        return int(match[1])

    first = ttl()
    while (now := ttl()) == first:  # unbound's own data never ages
        pass
    assert 290 < now < first <= 300


def test_a_long_answer_is_truncated_and_comes_whole_over_tcp(bed: Bed) -> None:
    for server in LAN_SERVER, TARGET_V4:
        short = dig(bed.net.client, server, "+ignore", "+bufsize=1232", "many.example", "A")
        assert re.search(r"flags: .*\btc\b", short)
        assert "ANSWER: 200" in dig(bed.net.client, server, "+bufsize=1232", "many.example", "A")
        assert "ANSWER: 200" in dig(bed.net.client, server, "+ignore", "+bufsize=4096", "many.example", "A")


@pytest.mark.parametrize("question", [("nothing.example", "A"), ("web.example", "MX")])
def test_what_does_not_exist(bed: Bed, question: tuple[str, str]) -> None:
    expected = "NXDOMAIN" if question[0].startswith("nothing") else "NOERROR"
    for _ in range(2):
        answer = dig(bed.net.client, LAN_SERVER, *question)
        assert f"status: {expected}" in answer and "ANSWER: 0" in answer


def test_programs_find_names_whose_resolver_is_on_the_lan(bed: Bed, tmp_path: Path) -> None:
    curl = (needs("curl", "curl"), "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}")
    with targets(bed.net.internet):
        for version, address in (("-4", TARGET_V4), ("-6", TARGET_V6)):
            shown = with_resolver(bed.net.client, tmp_path, LAN_SERVER, *curl, version, "http://web.example/page")
            assert shown == f"200 {address}"


def test_dnsperf_loses_nothing(bed: Bed, tmp_path: Path) -> None:
    program = needs("dnsperf", "dnsperf")
    names = tmp_path / "names"
    names.write_text(
        "".join(f"{name}.example {kind}\n" for name in ("web", "many", "who", "no") for kind in ("A", "TXT"))
    )
    options = ("-l", "2", "-c", "8", "-q", "50")
    report = bed.net.client.run(program, "-s", LAN_SERVER, "-d", str(names), *options)
    lost = re.search(r"Queries lost:\s+(\d+)", report)
    completed = re.search(r"Queries completed:\s+(\d+)", report)
    assert lost and completed
    assert (int(lost[1]), int(completed[1]) > 1000) == (0, True), report

"""The load and the targets, without the engine between them."""

import asyncio
import sys
from collections.abc import Iterator

import pytest

from engine.demo.lab import TARGETS_V4, Lab
from engine.demo.load import DATAGRAMS_PER_SIZE, PHASES
from engine.demo.meter import PhaseResult, Progress, decode_message
from engine.demo.service import Service
from engine.demo.targets import HTTP_PORT, http_request, http_response

pytestmark = pytest.mark.e2e

PYTHON = (sys.executable, "-P", "-m")
# A target nobody routes to cannot be reported as such by a lab without routers: it takes a proxy.
PLAIN_PHASES = [name for name in PHASES if name != "unreachable"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def start_targets(lab: Lab) -> Service:
    targets = lab.internet.start("targets", [*PYTHON, "engine.demo.targets", *lab.targets])
    targets.wait_for("listening", 20)
    return targets


def run_load(lab: Lab, phases: list[str], addresses: tuple[str, ...]) -> dict[str, PhaseResult]:
    command = [*PYTHON, "engine.demo.load", "--seconds", "0.2", "--phases", *phases, "--addresses", *addresses]
    results = {}
    with lab.client.start("load", command) as load:
        while (line := load.next_line(30)) is not None:
            message = decode_message(line)
            if isinstance(message, PhaseResult):
                results[message.phase] = message
            else:
                assert isinstance(message, Progress) and message.phase in phases
    return results


def test_every_phase_passes_on_a_plain_path(lab: Lab) -> None:
    with start_targets(lab):
        results = run_load(lab, PLAIN_PHASES, lab.targets)
    assert list(results) == PLAIN_PHASES
    assert {name: result.errors for name, result in results.items() if result.errors} == {}
    for name in "tcp_up", "tcp_down", "connections", "http":
        assert results[name].bytes_verified > 0 and results[name].rate > 0
    sent = DATAGRAMS_PER_SIZE * len(TARGETS_V4)
    assert set(results["udp_ipv4"].datagrams) == {0, 1, 200, 1200, 1472, 4000, 65_507}
    assert set(results["udp_ipv4"].datagrams.values()) == {(sent, sent)}


def test_every_phase_fails_when_nobody_answers(lab: Lab) -> None:
    phases = [name for name in PLAIN_PHASES if name not in ("refused", "udp_ipv6")]
    results = run_load(lab, phases, TARGETS_V4[:1])
    assert [name for name in phases if "Errno 111" not in results[name].errors[0]] == []
    assert results["udp_ipv4"].datagrams[200] == (DATAGRAMS_PER_SIZE, 0)


def test_refused_phase_fails_when_the_path_is_missing(lab: Lab) -> None:
    results = run_load(lab, ["refused"], ("192.0.2.77",))
    assert results["refused"].errors == ["192.0.2.77: EHOSTUNREACH instead of ECONNREFUSED"]


async def ask(requests: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(TARGETS_V4[0], HTTP_PORT)
    writer.write(requests)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_http_target_answers_pipelined_requests_in_order(lab: Lab) -> None:
    with start_targets(lab), lab.client.entered():
        answer = asyncio.run(ask(http_request("/a") + http_request("/b")))
    assert answer == http_response("/a") + http_response("/b")


def test_http_target_refuses_what_it_does_not_understand(lab: Lab) -> None:
    with start_targets(lab), lab.client.entered():
        answer = asyncio.run(ask(b"BREW /pot HTCPCP/1.0\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")

"""engine/status_view.py: what a person reads."""

import msgspec
import pytest

from engine.requests import NetworkEvent, NetworkStatus, OutboundHealth, WayOut
from engine.status_view import print_status
from tests.engine.test_control import STATUS, WORKER


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_status_shows_engine_and_workers(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(STATUS)
    text = capsys.readouterr().out
    for part in (
        "tunloom 0.1.0, pid 42, up 1:02:05",
        "tun0 (mtu 65535, offload: csum, tso4) -> socks5://u:***@[2001:db8::1]:1080, UDP: no: refused",
        "read 10 packets, 20 B; 511 of 512 slots free; dropped: nothing",
        "in all: 9 TCP and 1 UDP flows opened, 4 connects failed, 0 retransmits, 8 B to applications",
        "memory: 30.0 MiB + 35.0 MiB + 33.0 MiB",
        "malformed 2",
        "running",
        "4711",
    ):
        assert part in text


def test_addresses_and_reasons_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """`[fe80::1]` and `[/x]` are tags to rich: it would swallow the one and raise on the other."""
    print_status(msgspec.structs.replace(STATUS, proxy="socks5://[fe80::1]:1080", udp="no: [/oops]", interface="[red]"))
    text = capsys.readouterr().out
    for part in ("[red] (mtu", "socks5://[fe80::1]:1080", "no: [/oops]"):
        assert part in text


def test_worker_that_is_down_and_large_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    down = msgspec.structs.replace(WORKER, pid=None, state="backoff", bytes_out=3 * 2**40, packets_out=1234567)
    print_status(
        msgspec.structs.replace(
            STATUS, workers=[down], link_up=False, tun_dropped=5, drops={"ring_full": 7}, offload=[]
        )
    )
    text = capsys.readouterr().out
    for part in (
        "backoff",
        "(down, mtu",
        "1,234,567",
        "3.0 TiB to applications",
        "tun_queue_full 5, ring_full 7",
        "offload: none",
    ):
        assert part in text


def test_ways_out_and_the_last_events_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    events = [NetworkEvent(time=1_700_000_000.0 + n, kind="conflict", text=f"event {n} [/x]") for n in range(20)]
    ways = [
        WayOut(family=4, interface="eth0", gateway="192.0.2.1", addresses=["192.0.2.2/24"]),
        WayOut(family=6, interface="ppp0", gateway="", addresses=[]),
    ]
    print_status(msgspec.structs.replace(STATUS, network=NetworkStatus(ways_out=ways, events=events)))
    text = capsys.readouterr().out
    assert "past the tun: IPv4 by eth0 (192.0.2.1) as 192.0.2.2/24; IPv6 by ppp0 as ?" in text
    assert "event 12 [/x]" in text
    assert "event 19 [/x]" in text
    assert "event 11 " not in text


def test_outbounds_are_shown_that_flows_have_tried(capsys: pytest.CaptureFixture[str]) -> None:
    outbounds = [
        OutboundHealth(tag="group", works=None, used="two", passed_over={"one": 17.4}),
        OutboundHealth(tag="one", works=False),
        OutboundHealth(tag="two", works=True),
        OutboundHealth(tag="idle", works=None),
    ]
    print_status(msgspec.structs.replace(STATUS, outbounds=outbounds))
    expected = "outbounds: group -> two (passes over one for 17 s), one fails, two works\n"
    assert expected in capsys.readouterr().out


def test_numbers_of_a_busy_worker_stand_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    busy = msgspec.structs.replace(
        WORKER, pid=4194303, tcp_active=12345, udp_active=4096, packets_in=1234567890, packets_out=987654321
    )
    print_status(msgspec.structs.replace(STATUS, workers=[busy]))
    text = capsys.readouterr().out
    for part in ("4194303", "running", "12,345", "4,096", "1,234,567,890", "987,654,321"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80

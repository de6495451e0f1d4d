"""engine/http/prometheus.py: the counters as a scraper reads them, and that promtool has nothing to object."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.http.door import Door
from engine.http.prometheus import MetricsOf
from shared.metrics import CELLS, OUTBOUNDS_MAX, Cell, Histogram, OutboundCell, UdpState, observe, outbound_at
from tests.engine.http.measurement import Rows

Labels = frozenset[tuple[str, str]]


def samples(rows: Rows, *outbounds: str, **changes: object) -> dict[tuple[str, Labels], float]:
    """Name and labels of each sample -> value, as a scraper reads them."""
    text = exposition.generate_latest(MetricsOf(rows.measure(*outbounds, **changes))).decode()
    found = [sample for family in parse(text) for sample in family.samples]
    as_dict = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(as_dict) == len(found), "no sample stands twice"
    return as_dict


def at(name: str, **labels: str) -> tuple[str, Labels]:
    return f"tunloom_{name}", frozenset(labels.items())


def busy() -> Rows:
    """Counters of which none is zero."""
    rows = Rows()
    for number, row in enumerate(rows.rows):
        row[:] = [number + 1] * CELLS
    return rows


def test_what_the_master_and_the_workers_count() -> None:
    rows = Rows()
    master = rows.rows[-1]
    master[Cell.PACKETS_IN], master[Cell.BYTES_IN], master[Cell.DROP_RING_FULL] = 10, 1000, 3
    for worker, row in enumerate(rows.rows[:-1]):
        row[Cell.PACKETS_IN], row[Cell.PACKETS_OUT], row[Cell.BYTES_OUT] = 5 + worker, 7, 700
        row[Cell.TCP_OPENED], row[Cell.TCP_CLOSED], row[Cell.TCP_ACTIVE] = 4, 1, 3
        row[Cell.UDP_ACTIVE] = 2
        row[Cell.TCP_RETRANSMITS] = worker
        row[Cell.NO_LOCAL_PORT], row[Cell.UDP_EVICTED], row[Cell.LOG_LOST], row[Cell.USAGE_LOST] = 11, 12, 13, 14
    master[Cell.PROCESS_UNKNOWN] = 15
    found = samples(rows, "proxy", tun_dropped=9, bypass_evictions=16)
    for key, value in {
        at("tun_packets_total", direction="in"): 10,
        at("tun_packets_total", direction="out"): 14,
        at("tun_bytes_total", direction="in"): 1000,
        at("tun_bytes_total", direction="out"): 1400,
        at("worker_packets_total", worker="1", direction="in"): 6,
        at("packets_dropped_total", worker="master", reason="ring_full"): 3,
        at("packets_dropped_total", worker="master", reason="tun_queue_full"): 9,
        at("packets_dropped_total", worker="0", reason="checksum"): 0,
        at("flows_opened_total", worker="0", protocol="tcp"): 4,
        at("flows_closed_total", worker="0", protocol="tcp"): 1,
        at("flows_active", worker="1", protocol="tcp"): 3,
        at("flows_active", worker="1", protocol="udp"): 2,
        at("tcp_retransmits_total", worker="1"): 1,
        at("no_local_port_total", worker="1"): 11,
        at("udp_evicted_total", worker="1"): 12,
        at("log_lines_lost_total", worker="1"): 13,
        at("usage_lost_total", worker="1"): 14,
        at("processes_unknown_total", worker="master"): 15,
        at("bypass_evictions_total"): 16,
        at("memory_bytes", process="master"): 30 * 2**20,
        at("memory_bytes", process="worker 1"): 33 * 2**20,
        at("worker_up", worker="0"): 1,
        at("worker_restarts_total", worker="0"): 1,
        at("ring_packets", worker="0"): 7,
        at("pool_slots"): 512,
        at("pool_slots_free"): 511,
        at("healthy"): 1,
        at("build_info", version="0.1.0"): 1,
    }.items():
        assert found[key] == value, key


def test_outbounds_are_summed_over_workers_and_have_a_histogram() -> None:
    rows = Rows()
    second = outbound_at(1)
    for row in rows.rows[:-1]:
        row[second + OutboundCell.TCP_OPENED] = 3
        row[second + OutboundCell.BYTES_DOWN] = 500
        row[second + OutboundCell.FAILED] = 1
    observe(rows.rows[0], second + OutboundCell.CONNECT, 0.004)
    observe(rows.rows[1], second + OutboundCell.CONNECT, 0.3)
    observe(rows.rows[1], second + OutboundCell.CONNECT, 60.0)
    found = samples(rows, "direct", "proxy")
    assert found[at("outbound_flows_opened_total", outbound="proxy", protocol="tcp")] == 6
    assert found[at("outbound_flows_opened_total", outbound="direct", protocol="tcp")] == 0
    assert found[at("outbound_bytes_total", outbound="proxy", direction="down")] == 1000
    assert found[at("outbound_failures_total", outbound="proxy", reason="failed")] == 2
    name = "outbound_connect_duration_seconds"
    assert found[at(f"{name}_bucket", outbound="proxy", le="0.0025")] == 0
    assert found[at(f"{name}_bucket", outbound="proxy", le="0.005")] == 1
    assert found[at(f"{name}_bucket", outbound="proxy", le="10.0")] == 2
    assert found[at(f"{name}_bucket", outbound="proxy", le="+Inf")] == 3
    assert found[at(f"{name}_count", outbound="proxy")] == 3
    assert found[at(f"{name}_sum", outbound="proxy")] == pytest.approx(60.304)


def test_outbound_is_up_or_down_once_a_flow_has_tried_it() -> None:
    rows = Rows()
    rows.rows[0][outbound_at(0) + OutboundCell.WORKED_AT] = 1
    rows.rows[0][outbound_at(1) + OutboundCell.FAILED_AT] = 1
    found = samples(rows, "good", "bad", "never tried")
    assert found[at("outbound_up", outbound="good")] == 1
    assert found[at("outbound_up", outbound="bad")] == 0
    assert at("outbound_up", outbound="never tried") not in found


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ((UdpState.UNKNOWN, UdpState.UNKNOWN), None),
        ((UdpState.UNVERIFIED, UdpState.UNKNOWN), 1),
        ((UdpState.WORKS, UdpState.UNVERIFIED), 1),
        ((UdpState.WORKS, UdpState.NONE), 0),
    ],
)
def test_udp_of_a_proxy_once_it_is_known(states: tuple[UdpState, UdpState], told: int | None) -> None:
    rows = Rows()
    for row, state in zip(rows.rows, states, strict=False):
        row[outbound_at(0) + OutboundCell.UDP] = state
    assert samples(rows, "proxy").get(at("outbound_udp", outbound="proxy")) == told


def test_dns_is_counted_by_worker() -> None:
    rows = Rows()
    rows.rows[1][Cell.DNS_QUERIES] = 7
    rows.rows[1][Cell.DNS_CACHE_HITS], rows.rows[1][Cell.DNS_STALE_HITS] = 4, 1
    found = samples(rows, "proxy")
    assert found[at("dns_queries_total", worker="1")] == 7
    assert found[at("dns_cache_hits_total", worker="1")] == 4
    assert found[at("dns_stale_hits_total", worker="1")] == 1
    assert found[at("dns_queries_total", worker="0")] == 0


def test_outbounds_that_are_too_many_are_counted_together() -> None:
    rows = Rows()
    rows.rows[0][outbound_at(OUTBOUNDS_MAX - 1) + OutboundCell.TCP_OPENED] = 8
    tags = [f"p{i}" for i in range(OUTBOUNDS_MAX + 40)]
    found = samples(rows, *tags)
    assert found[at("outbound_flows_opened_total", outbound="(others)", protocol="tcp")] == 8
    named = {label for (name, labels), _ in found.items() for key, label in labels if key == "outbound"}
    assert named == {*tags[: OUTBOUNDS_MAX - 1], "(others)"}


def test_lag_is_told_for_every_process_and_dns_for_all_together() -> None:
    rows = Rows()
    for row in rows.rows:
        observe(row, Histogram.LOOP_LAG, 0.02)
        observe(row, Histogram.DNS, 0.02)
    found = samples(rows, "proxy")
    for worker in ("0", "1", "master"):
        assert found[at("event_loop_lag_seconds_count", worker=worker)] == 1
    assert found[at("dns_duration_seconds_count")] == 2


def test_process_without_a_known_size_is_left_out() -> None:
    found = samples(Rows(), "proxy", memory=None, http_memory=None)
    assert at("memory_bytes", process="master") not in found
    assert at("memory_bytes", process="worker 0") in found


def test_names_and_labels_keep_the_contract() -> None:
    """Prefix, base units, _total on counters; labels few and bounded."""
    text = exposition.generate_latest(MetricsOf(busy().measure("a", "b"), Door().families()))
    for family in parse(text.decode()):
        assert re.fullmatch(r"tunloom_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert set(sample.labels) <= {
                "worker",
                "protocol",
                "direction",
                "outbound",
                "reason",
                "process",
                "version",
                "le",
            }
            if family.type == "counter":
                assert sample.name.endswith("_total")


def test_openmetrics_is_valid_and_says_the_same() -> None:
    measurement = busy().measure("a", "b")
    text = openmetrics.generate_latest(MetricsOf(measurement)).decode()
    assert text.endswith("# EOF\n")
    plain = exposition.generate_latest(MetricsOf(measurement)).decode()
    values = [
        {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
        for families in (parse_openmetrics(text), parse(plain))
    ]
    assert values[0] == values[1]
    assert len(values[0]) > 200


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_has_nothing_to_object() -> None:
    text = exposition.generate_latest(MetricsOf(busy().measure("a", "b", 'c d/é"\n'), Door().families()))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_metric_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`(tunloom_\w+)`", (Path(__file__).parents[3] / "docs/monitoring.md").read_text()))
    families = parse(exposition.generate_latest(MetricsOf(busy().measure("a"), Door().families())).decode())
    assert documented == {f"{f.name}_total" if f.type == "counter" else f.name for f in families}

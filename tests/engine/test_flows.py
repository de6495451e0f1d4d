"""engine/flows.py: live flows decoded, filtered and sorted."""

import pytest

from engine.flows import SORT_KEYS, FlowError, filtered, live_flows, sorted_flows
from engine.requests import FlowsPart
from shared.control import FlowView, encode, flow_name, parse_flow_name
from shared.process import ProcessInfo


def view(number: int, **changes: object) -> FlowView:
    fields: dict[str, object] = {
        "id": number, "network": "tcp", "source": "192.0.2.7", "source_port": 4000 + number, "destination": "203.0.113.10",
        "destination_port": 443, "started_at": 0.0,
    }  # fmt: skip
    return FlowView(**(fields | changes))  # type: ignore[arg-type]


FLOWS = live_flows(
    [
        FlowsPart(0, encode((view(1, up=10, down=5, name="b.example", chain=("choice", "one"), rtt=0.2),))),
        FlowsPart(
            1, encode((view(2, up=1, down=50, network="udp", process=ProcessInfo(7, "curl", "/bin/curl", 0, "root")),))
        ),
        FlowsPart(1, encode((view(3, rule="config.json:4:7", state="established"),))),
    ]
)


def ids(flows: object) -> list[str]:
    return [flow.id for flow in flows]  # type: ignore[attr-defined]


def test_flow_has_a_name_that_leads_back_to_it() -> None:
    assert ids(FLOWS) == ["0-1", "1-2", "1-3"]
    assert parse_flow_name(flow_name(3, 0x6A2BC00001A)) == (3, 0x6A2BC00001A)
    assert (FLOWS[0].outbound, FLOWS[0].chain, FLOWS[0].host) == ("one", ("choice", "one"), "b.example")
    assert (FLOWS[1].process_name, FLOWS[1].host) == ("curl", "203.0.113.10")
    assert FLOWS[2].process is None


def test_numbers_sort_largest_first_and_text_in_its_order() -> None:
    assert ids(sorted_flows(FLOWS, "bytes")) == ["1-2", "0-1", "1-3"]
    assert ids(sorted_flows(FLOWS, "-bytes")) == ["1-3", "0-1", "1-2"]
    assert ids(sorted_flows(FLOWS, "process"))[-1] == "1-2"
    assert ids(sorted_flows(FLOWS, "rtt"))[0] == "0-1"
    for key in SORT_KEYS:
        assert sorted(ids(sorted_flows(FLOWS, key))) == ["0-1", "1-2", "1-3"]


def test_filters_must_all_hold() -> None:
    assert ids(filtered(FLOWS, ())) == ["0-1", "1-2", "1-3"]
    assert ids(filtered(FLOWS, ("EXAMPLE",))) == ["0-1"]
    assert ids(filtered(FLOWS, ("outbound=choice",))) == ["0-1"]
    assert ids(filtered(FLOWS, ("network=tcp", "worker=1"))) == ["1-3"]
    assert ids(filtered(FLOWS, ("source=:4002",))) == ["1-2"]


def test_wrong_keys_are_one_sentence() -> None:
    with pytest.raises(FlowError, match=r"^--sort: there is no speed; there are up, down, "):
        sorted_flows(FLOWS, "speed")
    with pytest.raises(FlowError, match=r"^--filter: there is no field speed; there are id, "):
        filtered(FLOWS, ("speed=1",))

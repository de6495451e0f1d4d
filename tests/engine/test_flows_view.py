"""`engine flows` and `engine usage` as people see them: nothing that others have chosen reaches the terminal as it is."""

import unicodedata

import pytest
from rich.cells import cell_len

from engine import flows_view
from engine.flows import LiveFlow, filtered, live_flows, sorted_flows
from engine.flows_view import flow_lines, print_flows, print_usage
from engine.printable import printable
from engine.requests import FlowsPart
from engine.usage import Total
from shared.control import encode
from shared.process import ProcessInfo
from tests.engine.test_flows import view

HOSTILE = "a\x1b[2J\x07\r\n\x9b31m\u202eb[red]"


def flows() -> list[LiveFlow]:
    hostile = view(
        1, name=HOSTILE, chain=(HOSTILE, HOSTILE), rule=HOSTILE, process=ProcessInfo(7, HOSTILE, "/x", 0, "root")
    )
    six = view(2, source="fd00::1", destination="2001:db8::1", name="a-name." * 30 + "example")
    return live_flows([FlowsPart(0, encode((hostile, six)))])


def controls(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf")} - {"\n"}


@pytest.mark.parametrize("width", [20, 40, 80, 200, 1000])
def test_no_control_character_is_printed_at_any_width(width: int) -> None:
    lines = flow_lines(flows(), width)
    assert len(lines) == 3
    assert all(len(line) <= width and not controls(line) and "\n" not in line for line in lines)


def test_what_is_too_long_is_cut_and_the_rest_stays() -> None:
    title, _, six = flow_lines(flows(), 130)
    assert six.startswith("0-2 tcp [fd00::1]:4002 a-name.a-name.")
    assert six.count("…") == 1
    assert title.index("down") + 4 == six.rindex("0 B") + 3


def test_wide_characters_keep_the_columns() -> None:
    wide = view(1, name="例え.example", process=ProcessInfo(7, "例え" * 9, "/x", 0, "root"), state="established")
    lines = flow_lines(live_flows([FlowsPart(0, encode((wide, view(2, state="established"))))]), 1000)
    ends = {cell_len(line) for line in lines[1:]}
    assert len(ends) == 1


def test_what_others_have_chosen_is_written_out() -> None:
    assert printable("plain ü 例え") == "plain ü 例え"
    assert printable(HOSTILE) == r"a\x1b[2J\x07\r\n\x9b31m\u202eb[red]"


def test_in_a_pipe_nothing_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    print_flows(flows(), 5)
    text = capsys.readouterr().out
    assert "[fd00::1]:4002" in text and "[2001:db8::1]:443" in text
    assert "a-name." * 30 + "example" in text
    assert r"\x1b[2J\x07\r\n\x9b31m\u202eb[red]" in text
    assert text.endswith("2 of 5 flows\n")
    assert not controls(text)


def test_usage_is_written_out_as_well(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_view, "PIPE_WIDTH", 60)
    print_usage([Total(HOSTILE, 1, 2, 3, "2026-01-01", "2026-01-02"), Total("", 1, 2, 3, "", "")], "domain")
    text = capsys.readouterr().out
    assert not controls(text)
    assert r"\x1b[2J" in text and "(not known)" in text


def test_every_text_that_is_shown_can_be_filtered_by() -> None:
    live = flows()
    for text in ("[fd00::1]:4002", "[2001:db8::1]:443", "name=a-name", "id=0-2", "destination=[2001"):
        assert [flow.id for flow in filtered(live, (text,))] == ["0-2"], text
    for text in ("process=\x1b[2j", "rule=a\x1b", f"outbound={HOSTILE} {HOSTILE}", f"name={HOSTILE}"):
        assert [flow.id for flow in filtered(live, (text,))] == ["0-1"], text
    assert [flow.id for flow in sorted_flows(live, "-source")] == ["0-2", "0-1"]

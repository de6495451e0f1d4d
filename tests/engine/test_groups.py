"""Choices in groups, and questions to workers: what the master sends, to a supervisor that only takes notes."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from engine.answers import Answers
from engine.choices import Choices
from engine.groups import Groups, NoSuchMember
from shared import control
from shared.config import BlockOutbound, FallbackOutbound, PassedOver, Policy, SelectorOutbound, UrltestOutbound
from tests.support.loop import on_loop

POLICY = Policy(
    outbounds=(
        SelectorOutbound(tag="choice", outbounds=("auto", "one")),
        UrltestOutbound(tag="auto", outbounds=("one", "two")),
        FallbackOutbound(tag="fallback", outbounds=("one", "two")),
        BlockOutbound(tag="one"),
        BlockOutbound(tag="two"),
    )
)


class Notes:
    """In the place of a Supervisor with three workers, of which `running` listen."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, control.FromMaster]] = []
        self.policy: Policy | None = None
        self.running = [0, 1, 2]
        self.current = [cast(Any, type("Worker", (), {"index": index})) for index in range(3)]
        self.measuring = 0

    def send(self, index: int, message: control.FromMaster) -> bool:
        if index not in self.running:
            return False
        self.sent.append((index, message))
        return True

    def send_all(self, message: control.FromMaster) -> list[int]:
        return [index for index in range(3) if self.send(index, message)]

    def set_policy(self, policy: Policy) -> None:
        self.policy = policy

    def chosen(self) -> dict[str, str | None]:
        """What a worker that starts now would be told."""
        assert self.policy is not None
        return {o.tag: o.default for o in self.policy.outbounds if isinstance(o, SelectorOutbound | UrltestOutbound)}


def groups(policy: Policy = POLICY) -> tuple[Groups, Notes]:
    notes = Notes()
    return Groups(cast(Any, notes), policy, Choices(None, "info")), notes


def test_first_members_are_used_at_first() -> None:
    made, _ = groups()
    assert made.chosen() == {"choice": "auto", "auto": "one", "fallback": "one"}
    assert made.policy == POLICY


def test_choice_is_told_to_all_workers_and_to_those_that_start_later() -> None:
    made, notes = groups()
    made.select("choice", "one")
    assert notes.sent == [(index, control.Select("choice", "one")) for index in range(3)]
    assert notes.chosen() == {"choice": "one", "auto": None}
    assert made.chosen()["choice"] == "one"


@pytest.mark.parametrize(
    ("group", "member", "reason"),
    [
        ("auto", "two", "no selector auto"),
        ("fallback", "two", "no selector fallback"),
        ("one", "two", "no selector one"),
        ("choice", "two", "no member two, but auto, one"),
    ],
)
def test_choice_that_cannot_be_is_refused(group: str, member: str, reason: str) -> None:
    made, notes = groups()
    with pytest.raises(NoSuchMember, match=reason):
        made.select(group, member)
    assert notes.sent == []


def test_what_one_worker_measures_all_use() -> None:
    made, notes = groups()
    report = control.Measured("auto", "two", {"one": None, "two": 0.02})
    made.on_measured(1, report)
    assert notes.sent == [], "only worker 0 measures"
    made.on_measured(0, report)
    assert notes.sent == [(index, control.Select("auto", "two")) for index in range(3)]
    assert made.delays == {"one": None, "two": 0.02}
    assert "auto" in made.measured_at
    made.on_measured(0, report)
    assert len(notes.sent) == 3, "told once"


def test_proxy_that_fails_has_urltest_groups_measured_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((100.0, 101.0, 129.9, 130.0, 200.0))
    monkeypatch.setattr("engine.groups.monotonic", lambda: next(times))
    made, notes = groups()
    for _ in range(3):
        made.on_failing()
    assert notes.sent == [(index, control.MeasureNow()) for index in range(3)], "once"
    made.on_failing()
    assert len(notes.sent) == 6
    made, notes = groups(Policy(outbounds=(BlockOutbound(tag="one"),)))
    made.on_failing()
    assert notes.sent == [], "there is nothing to measure"


def test_use_of_a_group_is_passed_on_to_the_worker_that_measures() -> None:
    made, notes = groups()
    made.on_used(0, control.Used("auto"))
    made.on_used(2, control.Used("auto"))
    assert notes.sent == [(0, control.Used("auto"))]


def test_what_one_worker_finds_dead_all_pass_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.groups.monotonic", lambda: 100.0)
    made, notes = groups()
    dead = PassedOver(group="fallback", member="one", until=130.0)
    made.on_passed_over(dead)
    assert notes.sent == [(index, dead) for index in range(3)]
    assert notes.policy is not None
    assert notes.policy.passed_over == (dead,), "for a worker that starts now"
    assert made.chosen()["fallback"] == "two"
    assert made.passed_over() == {("fallback", "one"): 30.0}
    assert made.load(POLICY).passed_over == (dead,)
    made.on_passed_over(PassedOver(group="fallback", member="two", until=90.0))
    assert made.chosen()["fallback"] == "one", "all are dead: the first is tried"
    made.on_passed_over(PassedOver(group="fallback", member="one", until=0.0))
    assert made.passed_over() == {("fallback", "two"): 0.0}
    assert made.load(Policy(outbounds=(BlockOutbound(tag="one"),))).passed_over == ()


def test_reload_keeps_the_choices_that_are_still_possible() -> None:
    made, _ = groups()
    made.select("choice", "one")
    made.on_measured(0, control.Measured("auto", "two", {}))
    loaded = made.load(
        Policy(
            outbounds=(
                SelectorOutbound(tag="choice", outbounds=("one", "two")),
                UrltestOutbound(tag="auto", outbounds=("one",)),
                BlockOutbound(tag="one"),
                BlockOutbound(tag="two"),
            )
        )
    )
    assert made.chosen() == {"choice": "one", "auto": "one"}
    assert loaded.outbounds[0] == SelectorOutbound(tag="choice", outbounds=("one", "two"), default="one")


# questions


def view(number: int) -> control.FlowView:
    return control.FlowView(
        id=number,
        network="tcp",
        source="192.0.2.1",
        source_port=1,
        destination="203.0.113.1",
        destination_port=2,
        started_at=0.0,
    )


def packed(*numbers: int) -> msgspec.Raw:
    return msgspec.Raw(control.encode(tuple(map(view, numbers))))


class Bed:
    """Answers, and the workers' side of it: `say` is what they say to each question."""

    def __init__(self, say: Any) -> None:
        self.notes = Notes()
        self.answers = Answers(cast(Any, self.notes))
        send = self.notes.send

        def send_and_answer(index: int, message: control.FromMaster) -> bool:
            sent = send(index, message)
            if sent:
                for answer in say(index, message):
                    asyncio.get_running_loop().call_soon(self.answers.on_answer, index, answer)
            return sent

        self.notes.send = send_and_answer  # type: ignore[method-assign]


@on_loop
async def test_flows_of_all_workers_come_in_parts() -> None:
    def say(index: int, question: control.ListFlows) -> list[control.Flows]:
        return [
            control.Flows(question.id, packed(1, 2), last=False),
            control.Flows(question.id, packed(3), last=True),
            control.Flows(question.id, packed(4), last=True),
        ]

    bed = Bed(say)
    bed.notes.running = [0, 2]
    flows = await bed.answers.flows()
    told = [(worker, flow.id) for worker, part in flows for flow in control.decode_views(part)]
    assert sorted(told) == [(w, n) for w in (0, 2) for n in (1, 2, 3)]


@on_loop
async def test_worker_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.answers.TIMEOUT", 0.01)
    bed = Bed(lambda index, question: [control.Reloaded(question.id, "no" if index else None)] if index != 1 else [])
    assert await bed.answers.reload(POLICY) == {0: None, 2: "no"}
    bed.notes.running = []
    assert await bed.answers.reload(POLICY) == {}
    assert await bed.answers.flows() == []


@on_loop
async def test_delay_is_measured_by_one_worker_that_runs() -> None:
    bed = Bed(lambda index, question: [control.Delay(question.id, 0.5)])
    bed.notes.running = [1, 2]
    assert (await bed.answers.test_delay("one", "http://test/", 1.0)).seconds == 0.5
    assert [index for index, _ in bed.notes.sent] == [1]
    bed.notes.running = []
    assert (await bed.answers.test_delay("one", "http://test/", 1.0)).error == "no worker answered"


def test_selectors_begin_with_what_was_chosen_before() -> None:
    choices, notes = Choices(None, "info"), Notes()
    choices.selected = {"choice": "one", "auto": "two", "gone": "one"}
    made = Groups(cast(Any, notes), POLICY, choices)
    assert made.chosen() == {"choice": "one", "auto": "one", "fallback": "one"}
    assert notes.chosen() == {"choice": "one", "auto": None}

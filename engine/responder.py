"""What the running engine does when it is asked: by its control socket, and by its HTTP process (engine/requests.py)."""

import logging
from collections.abc import Callable, Mapping

import msgspec

from engine.answers import Answers
from engine.choices import Choices
from engine.config.model import EngineConfig
from engine.config.rule_text import action_text, conditions_text
from engine.groups import Groups, NoSuchMember
from engine.inspector import Inspector
from engine.log_tap import LogTap
from engine.reload import Reloader
from engine.requests import (
    AskDns,
    Change,
    CloseFlows,
    Delay,
    FlowsPart,
    Flush,
    FlushFakeNames,
    FollowLog,
    ListFlows,
    ListOutbounds,
    ListRules,
    Measure,
    OutboundStatus,
    Reload,
    Reply,
    Request,
    RulesStatus,
    RuleStatus,
    SaveUsage,
    Select,
    Status,
    Stop,
    TestDelay,
)
from engine.supervisor import Supervisor
from engine.usage import UsageBook
from shared import control
from shared.config import (
    BlockOutbound,
    DirectOutbound,
    FallbackOutbound,
    Logical,
    Match,
    OutboundConfig,
    ProxyOutbound,
    Route,
    SelectorOutbound,
    UrltestOutbound,
)
from shared.control import parse_flow_name
from shared.fakeip import FakeIpTable
from shared.log import LEVELS, set_log_level

__all__ = ["Responder"]

log = logging.getLogger(__name__)

DELAY_TIMEOUT_MAX = 30.0  # seconds


class Responder:
    """Answers requests. `stop` ends the engine; `config` tells the configuration in force."""

    def __init__(
        self,
        *,
        stop: Callable[[], None],
        config: Callable[[], EngineConfig],
        inspector: Inspector,
        reloader: Reloader,
        choices: Choices,
        answers: Answers,
        groups: Groups,
        supervisor: Supervisor,
        fake_names: FakeIpTable | None,
        log: LogTap,
        usage: UsageBook,
    ) -> None:
        self._stop = stop
        self._config = config
        self._inspector = inspector
        self._reloader = reloader
        self._choices = choices
        self._answers = answers
        self._groups = groups
        self._supervisor = supervisor
        self._fake_names = fake_names
        self._log = log
        self._usage = usage

    async def answer(self, request: Request) -> Reply:
        """Do what is asked, and say what came of it."""
        match request:
            case Stop():
                self._stop()
                return Reply(ok=True)
            case Status():
                return Reply(status=await self._inspector.status())
            case Measure():
                return Reply(measurement=await self._inspector.measurement())
            case Reload():
                return Reply(
                    reloaded=await self._reloader.reload(workers=request.workers, new_workers=request.new_workers)
                )
            case Change():
                return await self._change(request)
            case ListFlows():
                parts = await self._answers.flows(owners=request.owners)
                return Reply(flows=[FlowsPart(worker, packed) for worker, packed in parts])
            case CloseFlows():
                return self._close(request.flow)
            case ListOutbounds():
                return Reply(outbounds=self._outbounds())
            case Select():
                return self._select(request)
            case TestDelay():
                return await self._test_delay(request)
            case ListRules():
                return Reply(rules=self._rules())
            case AskDns():
                answer = await self._answers.ask_dns(request.query)
                return Reply(dns=answer) if answer else Reply(error="the DNS service does not answer")
            case Flush():
                self._supervisor.send_all(control.FlushDns())
                return Reply(ok=True)
            case FlushFakeNames():
                return self._forget_fake_names()
            case FollowLog():
                return Reply(log=await self._log.follow(request.level, request.after))
            case SaveUsage():
                return Reply(usage_file=str(await self._usage.save()))

    async def _change(self, request: Change) -> Reply:
        level = request.log_level
        if level is not None and level not in LEVELS:
            return Reply(error=f"there is no log level {level}, but {', '.join(LEVELS)}")
        errors = await self._reloader.set_mode(request.mode) if request.mode is not None else []
        if errors:
            return Reply(error="; ".join(errors))
        if level is not None and level != self._choices.log_level:
            self._choices.log_level = level
            set_log_level(level)
            self._supervisor.set_log_level(level)
            if self._inspector.http is not None:
                self._inspector.http.set_log_level(level)
            log.info("the log level is %s", level)
        return Reply(ok=True)

    def _forget_fake_names(self) -> Reply:
        if self._fake_names is None:
            return Reply(error="there are no fake addresses: no DNS server is of the type fakeip")
        if self._fake_names.clear() is None:
            return Reply(error="the fake addresses are in use: try again")
        self._supervisor.send_all(control.FlushDns())
        return Reply(ok=True)

    def _close(self, name: str | None) -> Reply:
        if name is None:
            self._supervisor.send_all(control.CloseFlow())
            return Reply(ok=True)
        try:
            worker, number = parse_flow_name(name)
        except ValueError:
            return Reply(error=f"{name!r} is no name of a flow, such as 0-6a2bc00001a")
        self._supervisor.send(worker, control.CloseFlow(number))
        return Reply(ok=True)

    def _select(self, request: Select) -> Reply:
        try:
            self._groups.select(request.group, request.member)
        except NoSuchMember as error:
            return Reply(error=str(error))
        return Reply(ok=True)

    async def _test_delay(self, request: TestDelay) -> Reply:
        done = await self._answers.test_delay(request.outbound, request.url, min(request.timeout, DELAY_TIMEOUT_MAX))
        self._groups.note_delay(request.outbound, done.seconds)
        return Reply(delay=Delay(done.seconds, done.error))

    def _outbounds(self) -> list[OutboundStatus]:
        policy, chosen = self._config().policy, self._groups.chosen()
        return [
            _outbound_status(outbound, outbound.tag == policy.route.final, chosen, self._groups)
            for outbound in policy.outbounds
        ]

    def _rules(self) -> RulesStatus:
        route = self._config().policy.route
        return RulesStatus(
            rules=[
                RuleStatus(
                    conditions=conditions_text(rule.match),
                    fields=_fields(rule.match),
                    action=action_text(rule.action),
                    outbound=rule.action.outbound if isinstance(rule.action, Route) else None,
                    origin=rule.origin,
                )
                for rule in route.rules
            ],
            final=route.final or "",
            rule_sets={rule_set.tag: len(rule_set.rules) for rule_set in route.rule_sets},
        )


def _fields(match: Match | Logical) -> tuple[str, ...]:
    if isinstance(match, Logical):
        return ("logical",)
    return tuple(msgspec.structs.asdict(match).keys() & {
        name for name in Match.__struct_fields__ if getattr(match, name) not in ((), None, False)
    })  # fmt: skip


def _outbound_status(
    outbound: OutboundConfig, is_default: bool, chosen: Mapping[str, str], groups: Groups
) -> OutboundStatus:
    status = OutboundStatus(
        tag=outbound.tag,
        kind="direct",
        is_default=is_default,
        delay=groups.delays.get(outbound.tag),
        tested_at=groups.tested_at.get(outbound.tag),
    )
    match outbound:
        case ProxyOutbound():
            proxy = outbound.proxy
            host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
            status.kind, status.server, status.network = proxy.kind, f"{host}:{proxy.port}", outbound.network
        case DirectOutbound():
            pass
        case BlockOutbound():
            status.kind = "block"
        case SelectorOutbound():
            status.kind, status.members, status.now = "selector", outbound.outbounds, chosen.get(outbound.tag)
        case UrltestOutbound():
            status.kind, status.members, status.now = "urltest", outbound.outbounds, chosen.get(outbound.tag)
            status.url = outbound.url
        case FallbackOutbound():
            status.kind, status.members, status.now = "fallback", outbound.outbounds, chosen.get(outbound.tag)
    return status

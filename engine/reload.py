"""`engine reload` and SIGHUP: another configuration for new flows, while those that are there live on.

1  the files are read, checked and names resolved, in a thread; a configuration with an error changes nothing
2  proxies that are new are let out beside the tun
3  every worker is told; each answers whether it can follow. If one cannot, all go back to what they had
4  workers that are started from now on get it as well
5  where another number of workers is wanted, or new ones, these take over (engine/generations.py)

Another mode (Clash API) comes into force in the same way, without the files. What cannot be changed while the tun stands (its
addresses, limits, HTTP) is named, and waits for the next start.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from engine.choices import Choices
from engine.config.effective import CommandLine, UsageError, effective
from engine.config.model import EngineConfig
from engine.config.modes import in_mode, modes_of, same_mode
from engine.config.problems import ConfigError
from engine.config.resolve import ResolveError, upstream_addresses
from engine.generations import HandoverFailed
from engine.http.listen import ListenError
from engine.netconf import Network, NetworkError
from engine.requests import Reloaded
from shared.config import OutboundConfig, Policy, ProxyOutbound

__all__ = ["Reloader"]

log = logging.getLogger(__name__)

SWAPPED = ("policy", "mode", "files", "warnings", "workers", "drain_timeout")
"""Fields of EngineConfig that a reload puts into force."""


class Reloader:
    """Holds the configuration in force, made of `line`.

    put_in_force  has all workers follow a policy, and returns why one cannot
    renew         has so many new workers take over from those that there are, `workers` at first
    counted       tags of outbounds in the order of their rows in the counters, to which new ones are appended
    choices       among them the mode, which a reload keeps
    """

    def __init__(
        self,
        config: EngineConfig,
        line: CommandLine | None,
        *,
        network: Network,
        put_in_force: Callable[[Policy], Awaitable[list[str]]],
        renew: Callable[[int], Awaitable[None]],
        workers: int,
        counted: list[str],
        choices: Choices,
    ) -> None:
        self.config = config
        self._line = line
        self._network = network
        self._put_in_force = put_in_force
        self._renew = renew
        self._workers = workers
        self._counted = counted
        self._choices = choices
        self._one_at_a_time = asyncio.Lock()
        if self.mode != config.mode:
            log.info("the mode is %s, as it was chosen before", self.mode)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that there are."""
        return modes_of(self.config.policy, self.config.mode)

    @property
    def mode(self) -> str:
        """The mode in force."""
        return self._mode_of(self.config)

    @property
    def policy(self) -> Policy:
        """What workers follow."""
        return self._policy_of(self.config)

    async def set_mode(self, name: str) -> list[str]:
        """Let new flows follow the rules of another mode; return why that cannot be done."""
        async with self._one_at_a_time:
            mode = next((mode for mode in self.modes if same_mode(mode, name)), None)
            if mode is None:
                return [f"there is no mode {name}, but {', '.join(self.modes)}"]
            if mode == self.mode:
                return []
            before, self._choices.mode = self._choices.mode, mode
            errors = await self._put_in_force(self.policy)
            if errors:
                self._choices.mode = before
                await self._put_in_force(self.policy)
                return errors
            self._choices.keep()
            log.info("the mode is %s", mode)
            return []

    async def reload(self, *, workers: int | None = None, new_workers: bool = False) -> Reloaded:
        """Put the configuration as it stands in the files now into force, or say why not. See requests.Reload."""
        async with self._one_at_a_time:
            before = self.config.workers
            done = await self._reload()
            wanted = workers or (self.config.workers if self.config.workers != before else None) or self._workers
            if not done.errors and (wanted != self._workers or new_workers):
                await self._renew_workers(wanted, before, done)
        for line in done.errors:
            log.error("not reloaded: %s", line)
        for line in done.remarks:
            log.warning("%s", line)
        if done.failure:
            log.error("the workers stay as they are: %s", done.failure)
        if not done.errors:
            log.info("reloaded: new flows follow the new configuration")
        return done

    async def _renew_workers(self, count: int, before: int | None, done: Reloaded) -> None:
        try:
            await self._renew(count)
        except HandoverFailed as error:
            done.failure = str(error)
            self.config = msgspec.structs.replace(self.config, workers=before)  # the next reload tries again
        else:
            self._workers = done.workers = count

    async def _reload(self) -> Reloaded:
        if self._line is None:
            return Reloaded(errors=["this engine belongs to one command (engine run), and has nothing to read again"])
        old = self.config
        try:
            new, told = await asyncio.to_thread(effective, self._line, known=_addresses(old))
        except ConfigError as error:
            return Reloaded(errors=[*map(str, error.errors)], remarks=[*map(str, error.warnings)])
        except (OSError, ResolveError, ListenError, UsageError) as error:
            return Reloaded(errors=[str(error)])
        remarks = [*told, *(f"{name}: takes effect at the next start" for name in _held_back(old, new))]
        try:
            known = set(upstream_addresses(old))
            await self._network.bypass(address for address in upstream_addresses(new) if address not in known)
        except NetworkError as error:
            return Reloaded(errors=[str(error)], remarks=remarks)
        swapped = msgspec.structs.replace(old, **{name: getattr(new, name) for name in SWAPPED})
        errors = await self._put_in_force(self._policy_of(swapped))
        if errors:
            await self._put_in_force(self.policy)
            return Reloaded(errors=errors, remarks=remarks)
        self.config = swapped
        return Reloaded(remarks=remarks)

    async def move(self, found: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Have new flows go to proxies at other addresses, by name of their hosts; return why that cannot be done.

        The addresses bypass the tun before they are dialled.
        """
        async with self._one_at_a_time:
            outbounds = tuple(_moved(outbound, found) for outbound in self.config.policy.outbounds)
            policy = msgspec.structs.replace(self.config.policy, outbounds=outbounds)
            moved = msgspec.structs.replace(self.config, policy=policy)
            try:
                await self._network.bypass(dict.fromkeys(address for several in found.values() for address in several))
            except NetworkError as error:
                return [str(error)]
            errors = await self._put_in_force(self._policy_of(moved))
            if not errors:
                self.config = moved
            return errors

    def _policy_of(self, config: EngineConfig) -> Policy:
        """What a configuration means now: in the mode in force, with the rows of the counters."""
        policy = in_mode(config.policy, self._mode_of(config))  # it may have an outbound of its own
        self._counted += [outbound.tag for outbound in policy.outbounds if outbound.tag not in self._counted]
        return msgspec.structs.replace(policy, counted=tuple(self._counted))

    def _mode_of(self, config: EngineConfig) -> str:
        """What was chosen, as long as it is a mode, else the configuration's."""
        chosen = self._choices.mode or ""
        modes = modes_of(config.policy, config.mode)
        return next((mode for mode in modes if same_mode(mode, chosen)), config.mode)


def _moved(outbound: OutboundConfig, found: Mapping[str, tuple[str, ...]]) -> OutboundConfig:
    if not isinstance(outbound, ProxyOutbound) or outbound.proxy.host not in found:
        return outbound
    proxy = msgspec.structs.replace(outbound.proxy, addresses=found[outbound.proxy.host])
    return msgspec.structs.replace(outbound, proxy=proxy)


def _addresses(config: EngineConfig) -> dict[str, tuple[str, ...]]:
    """Names of servers -> addresses, as far as they are known."""
    proxies = [outbound.proxy for outbound in config.policy.outbounds if isinstance(outbound, ProxyOutbound)]
    found = {proxy.host: proxy.addresses for proxy in proxies if proxy.addresses}
    return found | {server.server: server.addresses for server in config.policy.dns.servers if server.addresses}


def _held_back(old: EngineConfig, new: EngineConfig) -> list[str]:
    """Names of what differs and cannot be swapped, such as `tun.mtu`."""
    names = []
    for field in old.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if field in SWAPPED or before == after:
            continue
        if isinstance(before, msgspec.Struct) and type(before) is type(after):
            names += [
                f"{field}.{inner}"
                for inner in before.__struct_fields__
                if getattr(before, inner) != getattr(after, inner)
            ]
        else:
            names.append(field)
    return names

"""The master's front of netconf: coroutines that run the helper processes and speak with the guardian."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.netconf import EXIT_NOT_PERMITTED, NetworkError, Watch, front
from engine.netconf.events import EventBook
from engine.netconf.journal import has_journal
from engine.netconf.keeper import ANSWER_TIMEOUT, GuardianKeeper
from engine.netconf.plan import NetworkPlan

if TYPE_CHECKING:
    from engine.netconf.upkeep import Upkeep

__all__ = ["Network", "repair_network"]

log = logging.getLogger(__name__)

NAMED_MAX = 3
"""Changes that a line of the log names."""


class Network:
    """Changes the network of this machine (of this network namespace) and restores it.

    Call `start_guardian`, then `apply`, then `restore`. When the process dies in between, however it dies, the guardian
    restores the network; when the guardian dies, another takes its place. When somebody sets the tun down and up again, the
    changes that this undid are made again, and so are those that another program removes; when somebody deletes the tun,
    `on_gone` is called. `events` has what has happened.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_gone: Callable[[], None] = lambda: None,
        on_moved: Callable[[tuple[int, int]], None] = lambda egress: None,
    ) -> None:
        self.run_dir = run_dir
        self._front = front()
        self._on_gone = on_gone
        self._tell_moved = on_moved
        self.guardian = GuardianKeeper(run_dir)
        self.events = EventBook()
        self._watch: Watch | None = None
        self._upkeep: Upkeep | None = None
        self.link_up = True
        """False while somebody has set the tun down."""
        self._renewal: asyncio.Task[list[str] | None] | None = None
        self.kill_switch = False
        """Whether one is closed."""
        self.bypass_evictions = 0
        """Hosts that were led into the tun again to make room for others (BYPASS_MAX)."""

    async def start_guardian(self) -> None:
        """Start the guardian and wait until it watches. Raises NetworkError."""
        await self.guardian.start()

    async def apply(self, plan: NetworkPlan) -> list[str]:
        """Make the changes of `plan`; return remarks for the user, such as that IPv6 is left out.

        What an earlier run left is undone first. On failure everything is undone and NetworkError is raised.
        """
        assert self.guardian.life_read >= 0, "no change without a guardian"
        self.kill_switch = plan.kill_switch
        remarks = await _run_helper("apply", self.run_dir, guard_fd=self.guardian.life_read, plan=plan)
        try:
            self._watch = self._front.watch(
                asyncio.get_running_loop(),
                plan.interface,
                on_change=self._on_link,
                on_gone=self._on_gone,
                on_moved=self._on_moved,
            )
            if self._front.upkeep is not None:
                self._upkeep = self._front.upkeep(
                    self.run_dir, plan, self.events, renew=self._on_removed, can_renew=lambda: self.link_up
                )
                await self._upkeep.start()
        except OSError as error:
            raise NetworkError(f"The interface {plan.interface} cannot be watched: {error.strerror}.") from error
        return remarks

    @property
    def ways_out(self) -> dict[int, tuple[str, str, list[str]]]:
        """IPv4 and IPv6 -> the interface by which it leaves this machine by itself, the router (or ""), its addresses there."""
        picture = self._upkeep.picture if self._upkeep is not None else None
        if picture is None:
            return {}
        return {
            family: (way.interface, way.gateway, picture.addresses(way.interface, family))
            for family, way in picture.ways_out.items()
        }

    async def bypass(self, addresses: Iterable[str]) -> None:
        """Let these hosts (IPv4 or IPv6 addresses) leave beside the tun from now on, whoever sends to them.

        On disk first, and undone like every other change. Harmless when repeated; nothing without `apply` or its
        auto_route. At most BYPASS_MAX hosts: beyond, the ones added first go back into the tun (`bypass_evictions`).
        Raises NetworkError.
        """
        # In a thread, because a disk may take its time for the fsync.
        self.bypass_evictions += await asyncio.to_thread(self._front.add_bypass, self.run_dir, tuple(addresses))

    async def end_bypass(self, addresses: Iterable[str]) -> None:
        """Lead these hosts into the tun again; harmless for those that are. Raises NetworkError."""
        await asyncio.to_thread(self._front.remove_bypass, self.run_dir, tuple(addresses))

    def _on_link(self, up: bool) -> None:
        self.link_up = up
        if up:
            self.events.note("tun_up", "the tun is up again", level=None)
            self._start_renewal("the tun is up again")
        else:
            text = "the tun was set down: until it is up again, traffic goes past the proxy"
            self.events.note("tun_down", text, level=logging.WARNING)

    def _on_moved(self, egress: tuple[int, int]) -> None:
        """The machine has another default route (macOS): new connections leave by it, and so do hosts beside the tun."""
        why = "the machine is in another network" if any(egress) else "the machine is in no network"
        self._tell_moved(egress)
        self.events.note("default_route_moved", why, level=None)
        self._start_renewal(why)

    async def _on_removed(self) -> bool:
        """Another program has removed changes of ours, unless a renewal for another reason was quicker. False: it failed."""
        names = await self._renew(self._renewal)
        if names:
            named = ", ".join(names[:NAMED_MAX]) + (
                f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
            )
            text = f"another program had removed what leads traffic into the tun: made again ({named})"
            self.events.note("made_again", text, level=logging.WARNING)
        return names is not None

    def _start_renewal(self, why: str) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew(self._renewal, why), name="renew")

    async def _renew(self, previous: asyncio.Task[list[str] | None] | None, why: str | None = None) -> list[str] | None:
        """Make again what is missing, when `previous` is done; return its names, None on failure. `why`: told in the log."""
        if previous is not None:
            await previous
        try:
            made = await _run_helper("renew", self.run_dir, guard_fd=self.guardian.life_read)
        except NetworkError as error:
            log.error(
                "%s, but traffic still goes past the proxy: %s", why or "changes of the network were removed", error
            )
            return None
        if why is not None:
            log.warning("%s: %d routes and addresses made again", why, len(made))
        return made

    async def restore(self, *, hold: bool = False) -> None:
        """Undo everything and end the guardian; harmless when there is nothing to undo.

        `hold`: a kill switch stays closed, because the engine has failed and was not stopped. Raises NetworkError.
        """
        if self._watch is not None:
            self._watch.close()
        if self._upkeep is not None:
            await self._upkeep.close()
        if self._renewal is not None:
            await self._renewal
        answer = await self.guardian.undo(hold=hold)
        if not answer:  # somebody has killed the guardian
            await repair_network(self.run_dir, hold=hold)
        elif answer not in ("done", "held"):
            raise NetworkError(answer)
        if hold and has_journal(self.run_dir):
            log.warning("the kill switch lets nothing out until the engine runs again; `engine repair` opens it")


async def repair_network(run_dir: Path, *, hold: bool = False) -> int:
    """Undo what a run that crashed has left; return the number of changes. `hold`: a kill switch stays closed.

    Raises NetworkError.
    """
    return int((await _run_helper("undo", run_dir, *(["--hold"] if hold else [])))[0])


async def _run_helper(
    command: str, run_dir: Path, *options: str, guard_fd: int | None = None, plan: NetworkPlan | None = None
) -> list[str]:
    """Run `python -m engine.netconf`; return its lines. Raises NetworkError with its sentence when it fails."""
    helper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "engine.netconf", command, "--run-dir", str(run_dir), *options),
        *(() if guard_fd is None else ("--guard-fd", str(guard_fd))),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        pass_fds=() if guard_fd is None else (guard_fd,),
    )
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            output, errors = await helper.communicate(b"" if plan is None else msgspec.json.encode(plan))
    except TimeoutError:
        helper.kill()
        await helper.wait()
        raise NetworkError(f"The network helper ({command}) gave no answer in {ANSWER_TIMEOUT:g} seconds.") from None
    if helper.returncode != 0:
        sentence = errors.decode(errors="replace").strip() or f"The network helper ({command}) died."
        raise NetworkError(sentence, not_permitted=helper.returncode == EXIT_NOT_PERMITTED)
    return output.decode().splitlines()

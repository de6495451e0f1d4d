"""Addresses, routes and rules: the machine's traffic is led into the tun, and everything is as before afterwards.

    master ── Network.apply ──► python -m engine.netconf apply      each change: journal (fsync), then kernel
       │                                      │
       │                            RUN_DIR/network.journal         every change with its undo
       │                                      │
       └── pipe ─── EOF or "undo" ──► python -m engine.netconf.guardian      undoes the journal in reverse

All of it runs outside of the master, for two reasons: a guardian of its own survives `kill -9` of the master, so that a
crash never leaves the machine without network, and pyroute2 (14 MB, an event loop of its own) stays out of the master.

plan      what is wanted, and how it is expressed in routes and rules; pure
journal   what was changed, on disk
life_line  refuses changes once the master is gone
linux     applies a plan, undoes a journal
netlink   makes and reverts one change; all of pyroute2
throw     makes and reverts one bypass, without pyroute2
darwin    applies a plan, follows the machine to another network, undoes a journal; on macOS
darwin_plan, darwin_kernel, darwin_bypass, darwin_watch    what plan, netlink, bypass and watch are on Linux
kill_switch  holds back what does not go into the tun (nftables)
bypass    lets single hosts leave beside the tun, at any time
guardian  restores the network when the master is gone
keeper    keeps one guardian alive
watch     tells when somebody sets the tun down, and up again
surroundings, picture, rtnetlink    tell what others change, of ours and of the machine's own network
nftables_watch    tells when somebody takes the kill switch away
upkeep    makes again what others have removed, and keeps the kill switch true to the local networks
events    remembers what has happened, for `engine status`
survey    what others have made, for `engine doctor`
network   the master's front: `Network`; `repair_network` for `engine repair`
"""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from engine.netconf.network import Network, repair_network
    from engine.netconf.plan import NetworkPlan
    from engine.netconf.upkeep import Upkeep

__all__ = [
    "EXIT_NOT_PERMITTED",
    "Changes",
    "Front",
    "Network",
    "NetworkError",
    "Watch",
    "changes",
    "front",
    "repair_network",
]

EXIT_NOT_PERMITTED = 3
"""Exit code of a helper process that lacks a privilege; also that of the command line."""


class NetworkError(Exception):
    """The network cannot be changed or restored; its text is one sentence with the cause and the way out."""

    def __init__(self, message: str, *, not_permitted: bool = False) -> None:
        super().__init__(message)
        self.not_permitted = not_permitted


def __getattr__(name: str) -> Any:
    """Import the master's front on first use: the guardian imports this package too, and must stay without asyncio."""
    if name in ("Network", "repair_network"):
        from engine.netconf import network

        return getattr(network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Changes(Protocol):
    """What changes this platform's network, in a helper process: engine/netconf/linux.py has the contracts."""

    def apply(self, plan: "NetworkPlan", run_dir: "Path", *, guard_fd: int | None = None) -> list[str]:
        """Make the changes of `plan`."""

    def renew(self, run_dir: "Path", *, guard_fd: int | None = None) -> list[str]:
        """Make again what was lost; return the names of what was."""

    def undo(self, run_dir: "Path", *, hold: bool = False) -> int:
        """Undo what the journal holds."""


class Watch(Protocol):
    """Watches the tun and what it depends on."""

    def close(self) -> None:
        """Watch no more."""


class Front(NamedTuple):
    """What the master itself does to this platform's network; engine/netconf/{bypass,watch}.py have the contracts."""

    add_bypass: "Callable[[Path, Iterable[str]], int]"
    remove_bypass: "Callable[[Path, Iterable[str]], None]"
    watch: Callable[..., Watch]
    upkeep: "type[Upkeep] | None"
    """None where `watch` sees to it all (macOS)."""
    egress: Callable[[str], tuple[int, int] | None]
    build_plan: "Callable[..., NetworkPlan]"


def changes() -> Changes:
    """Return what changes this platform's network; it is large, so helper processes alone call this."""
    if sys.platform == "darwin":
        from engine.netconf import darwin

        return darwin
    from engine.netconf import linux

    return linux


def front() -> Front:
    """Return the master's part for this platform."""
    if sys.platform == "darwin":
        from engine.netconf.darwin_bypass import add_bypass, remove_bypass
        from engine.netconf.darwin_plan import build_darwin_plan
        from engine.netconf.darwin_watch import RouteWatch, egress

        return Front(add_bypass, remove_bypass, RouteWatch, None, egress, build_darwin_plan)
    from engine.netconf import bypass, plan, upkeep, watch

    return Front(bypass.add_bypass, bypass.remove_bypass, watch.LinkWatch, upkeep.Upkeep, watch.egress, plan.build_plan)

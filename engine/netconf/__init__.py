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
linux     applies a plan, undoes a journal
netlink   makes and reverts one change; all of pyroute2
throw     makes and reverts one bypass, without pyroute2
kill_switch  holds back what does not go into the tun (nftables)
bypass    lets single hosts leave beside the tun, at any time
guardian  restores the network when the master is gone
keeper    keeps one guardian alive
watch     tells when somebody sets the tun down, and up again
network   the master's front: `Network`; `repair_network` for `engine repair`
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.netconf.network import Network, repair_network

__all__ = ["EXIT_NOT_PERMITTED", "Network", "NetworkError", "repair_network"]

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

"""The network of an engine whose tun stands ready in a namespace of its own: there is nothing to change and to restore."""

from collections.abc import Iterable

from engine.netconf.network import Network
from engine.netconf.plan import NetworkPlan

__all__ = ["PrivateNetwork"]


class PrivateNetwork(Network):
    """See engine.netconf.Network."""

    async def start_guardian(self) -> None:
        """No changes, no guardian."""

    async def apply(self, plan: NetworkPlan) -> list[str]:
        """The cell has made all of it."""
        return []

    async def bypass(self, addresses: Iterable[str]) -> None:
        """Nobody but the command sends into this tun."""

    async def end_bypass(self, addresses: Iterable[str]) -> None:
        """See bypass."""

    async def restore(self, *, hold: bool = False) -> None:
        """The namespace takes everything with it."""

"""What the relay asks of the other parts of a worker. The composition root (workers/worker.py) provides it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from shared.config import Policy, Resolve
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler
from workers.upstream import Outbound

__all__ = ["DnsService", "ProcessService", "TakePolicy"]

TakePolicy = Callable[[Mapping[str, Outbound], Outbound, Outbound], None]
"""Takes a policy that was prepared, given its outbounds by tag, the one past all proxies, and that of flows no rule takes."""


class DnsService(Protocol):
    """DNS for the flows that rules hand over, and what DNS knows of addresses."""

    def ask(self, query: bytes, ends: Ends, respond: Callable[[bytes], object]) -> None:
        """Answer one message of a program by a call of `respond`, now or later, or never.

        `ends` tells who asks whom, and over what: a message over TCP comes without its length.
        """

    def answer_at_once(self, query: bytes, destination: bytes, now: float) -> bytes | None:
        """Return the answer to a message over UDP to a packed address when it is known; None: it is to be given to `ask`."""

    async def look_up(self, name: str, how: Resolve) -> Sequence[bytes]:
        """Return the packed addresses of `name`, best first; `how` as a rule says. Raises UpstreamError."""

    def prepare(self, policy: Policy, compiler: Compiler) -> TakePolicy:
        """Look through the DNS part of a policy; return what takes it. Raises ValueError."""

    def note_outbounds(self) -> None:
        """What outbounds carry, or which members groups have chosen, may have changed."""

    async def look_up_directly(self, name: str) -> Sequence[bytes]:
        """Return the packed addresses of `name`, as the machine's own resolver says, past all proxies. Raises UpstreamError."""

    def name_of(self, address: bytes) -> tuple[str | None, bool]:
        """Return the name that a packed address was given out for, and whether it is a fake one, which leads nowhere."""


class ProcessService(Protocol):
    """Finds the program behind a flow."""

    async def of(self, ends: Ends, *, for_view: bool = False) -> tuple[ProcessInfo, bool]:
        """Return the owner, and whether its flows go out directly whatever the rules say (the local proxy's own).

        Of the owner as much as rules need, or with `for_view` all that can be found out.
        """

    async def is_own(self, ends: Ends) -> tuple[bool, bool]:
        """Return whether a flow is the local proxy's own, and whether that holds for all that its socket sends."""

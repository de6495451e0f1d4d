"""The DNS of a worker, for tests of what uses it."""

import asyncio

from shared.answered import PART_SIZE, AnsweredNames
from shared.metrics import Counters
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from workers.dns.names import KnownNames
from workers.dns.worker_dns import WorkerDns
from workers.upstream.proxy import ProxyUpstream

__all__ = ["worker_dns"]


class _NoProbes(WorkerDns):
    """Asks nothing of its own: scripted proxies are not disturbed."""

    def _probe(self, proxy: ProxyUpstream) -> None:
        pass


def worker_dns(counters: Counters) -> WorkerDns:
    """One without fake addresses, whose askers are nobody."""
    answered = AnsweredNames([memoryview(bytearray(PART_SIZE))], 0)
    made = _NoProbes(asyncio.get_running_loop(), counters, KnownNames(None, answered), fake_ip=None, own=frozenset())
    made.find_owner = _nobody
    return made


async def _nobody(ends: Ends) -> ProcessInfo:
    return ProcessInfo()

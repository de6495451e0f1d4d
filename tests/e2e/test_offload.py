"""The engine works with whatever offloads the kernel grants, down to none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.engine import bed
from tests.support.netns import TARGET_V4, TARGET_V6, Topology
from tests.support.sockets import flow, listening, pseudo_random, receive

pytestmark = pytest.mark.e2e

SIZE = 50_000_000  # bytes in each direction

GRANTED = {
    "auto": {"csum", "tso4", "tso6", "tso_ecn"},
    "uso": {"csum", "tso4", "tso6", "tso_ecn"},
    "tso": {"csum", "tso4", "tso6", "tso_ecn"},
    "csum": {"csum"},
    "none": set(),
    "no-header": set(),
}


@pytest.mark.parametrize("mtu", ["65535", "1500"])
@pytest.mark.parametrize("offload", GRANTED)
def test_50_mb_both_ways(run_dir: Path, offload: str, mtu: str) -> None:
    with bed(run_dir, "--offload", offload, "--mtu", mtu) as made:
        status = made.engine.status()
        # UDP segmentation is new in Linux 6.2: taken when it is there.
        assert set(status.offload) - {"uso4", "uso6"} == GRANTED[offload]
        assert status.mtu == int(mtu)
        transfer_both_ways(made.net)


def transfer_both_ways(net: Topology) -> None:
    """Move SIZE bytes in each direction at once, one flow in IPv4 and one in IPv6."""
    data = pseudo_random(SIZE)
    with ThreadPoolExecutor() as pool, listening(net, TARGET_V4) as server_v4, listening(net, TARGET_V6) as server_v6:
        received = []
        sockets = []
        for server in server_v4, server_v6:
            app, peer = flow(net, server)
            sockets += [app, peer]
            for sender, receiver in (app, peer), (peer, app):
                received.append(pool.submit(receive, receiver, SIZE))
                pool.submit(sender.sendall, data)
        assert [future.result() == data for future in received] == [True] * 4
        for sock in sockets:
            sock.close()

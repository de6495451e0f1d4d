"""A namespace that forwards, as long as a test needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.netns import Namespace

__all__ = ["forwarding"]


@contextmanager
def forwarding(router: Namespace) -> Iterator[None]:
    """Let `router` forward IPv4 and IPv6 as long as the body runs."""
    switches = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
    with router.entered():
        before = [switch.read_text() for switch in switches]
        for switch in switches:
            switch.write_text("1")
    try:
        yield
    finally:
        with router.entered():
            for switch, value in zip(switches, before, strict=True):
                switch.write_text(value)

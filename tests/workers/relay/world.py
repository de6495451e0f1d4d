"""Kernel sockets -> a real tun -> Stack -> Relay -> outbounds -> kernel sockets, on one loop, without master and rings.

namespace `client`: the applications' sockets and the tun      namespace `internet`: this thread, proxies, targets on lo
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any, Self

from engine.tun import Offload, TunDevice, open_tun
from shared import control
from shared.config import Policy, ProxyConfig, ProxyOutbound, StackConfig, UdpConfig, WorkerConfig
from shared.metrics import CELLS
from shared.process import ProcessInfo
from shared.rules.matcher import Compiler
from shared.wire.virtio import HEADER_LEN
from tests.support.dns import worker_dns
from tests.support.netns import TARGET_V4, TARGET_V6, Namespace, ip, namespace
from tests.support.peers import Endpoint
from workers.relay.relay import Relay
from workers.relay.services import DnsService
from workers.stack.stack import Stack

TUN_ADDRESSES = ("172.18.0.1/30", "fd00:18::1/126")

__all__ = ["World", "network", "proxy_outbound"]


def proxy_outbound(endpoint: Endpoint, tag: str = "proxy", **fields: Any) -> ProxyOutbound:
    """A SOCKS5 proxy."""
    proxy = ProxyConfig(kind="socks5", host=endpoint[0], port=endpoint[1], addresses=(endpoint[0],))
    return ProxyOutbound(tag=tag, proxy=proxy, **fields)


class World:
    """The client's namespace, its tun, and the worker's parts that serve it.

    told       what the relay has told the master
    processes  answers to FindProcess, by destination port: whose flow it is, and whether it is the proxy's own
    """

    def __init__(
        self, client: Namespace, tun: TunDevice, policy: Policy, *, dns: DnsService | None = None, **udp: Any
    ) -> None:
        self.client = client
        self.counters = [0] * CELLS
        self._tun = tun
        self._loop = asyncio.get_running_loop()
        stack_config = StackConfig(mtu=tun.mtu, offload=tun.offload)
        config = WorkerConfig(
            index=0,
            places=1,
            measures=True,
            slots=1,
            ring_entries=1,
            policy=policy,
            stack=stack_config,
            udp=UdpConfig(**udp),
            tun_addresses=TUN_ADDRESSES,
        )
        self.told: list[control.FromWorker] = []
        self.processes: dict[int, tuple[ProcessInfo, bool]] = {}
        self.dns = dns or worker_dns(self.counters)
        self.relay = Relay(self._loop, config, self.counters, self.dns, self._on_told)
        self.load(policy)
        self.stack = Stack(
            stack_config,
            transmit=self._transmit,
            on_syn=self.relay.on_syn,
            on_datagram=self.relay.on_datagram,
            secret=bytes(16),
            counters=self.counters,
        )
        self.relay.stack = self.stack
        self._packet = bytearray(HEADER_LEN + 65536)
        self._at = 0 if tun.offload else HEADER_LEN
        self._loop.add_reader(tun.fd, self._on_packet)
        self._timer = self._loop.call_soon(self._on_timer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._tun.fd)
        self._timer.cancel()
        self.relay.close()

    def load(self, policy: Policy) -> None:
        """Have new flows follow `policy`."""
        self.relay.load(policy, Compiler(policy.route.rule_sets))

    def _on_told(self, message: control.FromWorker) -> bool:
        self.told.append(message)
        if isinstance(message, control.FindProcess) and message.destination_port in self.processes:
            process, direct = self.processes[message.destination_port]
            self._loop.call_soon(self.relay.processes.found, control.ProcessFound(message.id, process, direct, True))
        return True

    def _on_packet(self) -> None:
        view = memoryview(self._packet)
        size = os.readv(self._tun.fd, [view[self._at :]])
        now = monotonic()
        self.stack.process(view[: self._at + size], now)
        self.stack.flush(now)

    def _transmit(self, parts: Any) -> None:
        # A packet refused is a packet lost, and what the stack then does is its own tests' business.
        with contextlib.suppress(OSError):
            packet = b"".join(parts)
            os.write(self._tun.fd, packet[self._at :])

    def _on_timer(self) -> None:
        self.stack.timeout(monotonic())
        self._timer = self._loop.call_later(0.01, self._on_timer)

    def new_socket(self, target: Endpoint, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A non-blocking socket of the application, in its namespace."""
        with self.client.entered():
            return socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, kind | socket.SOCK_NONBLOCK)

    async def connect(self, target: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The application connects. Raises OSError as its kernel reports it."""
        sock = self.new_socket(target)
        try:
            await self._loop.sock_connect(sock, target)
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock)

    async def udp(self, target: Endpoint) -> socket.socket:
        """A UDP socket of the application, connected to `target`."""
        sock = self.new_socket(target, socket.SOCK_DGRAM)
        sock.connect(target)
        return sock


@contextlib.contextmanager
def network(offload: Offload = "auto", mtu: int = 1500) -> Iterator[tuple[Namespace, TunDevice]]:
    """Make both namespaces and the tun, and move to the internet."""
    with namespace("client") as client, namespace("internet") as internet, internet.entered():
        for address in (TARGET_V4, TARGET_V6):
            ip("addr", "add", address, "dev", "lo")
        with client.entered():
            tun = open_tun("tun0", mtu=mtu, offload=offload)
            for address in TUN_ADDRESSES:
                ip("addr", "add", address, "dev", "tun0", *(["nodad"] if ":" in address else []))
            ip("link", "set", "tun0", "mtu", str(mtu), "up")
            ip("-4", "route", "add", "default", "dev", "tun0")
            ip("-6", "route", "add", "default", "dev", "tun0")
        try:
            yield client, tun
        finally:
            tun.close()

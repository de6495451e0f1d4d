"""What the counters in shared memory cost a packet: master's dispatch, ring and stack, with them and without, in turns.

    python -m loadtests.micro.counters [--rounds N] [--packets N]

`Without` is the same source, from which every statement that writes a counter is taken out as it is loaded. One process each,
on the same processor; they measure their processor time in turns, so that a machine that is slow for a moment is slow for both.
System calls are left out: packets come from a list instead of the tun, and what is written to it goes nowhere. With them the
counters' share is smaller. The last column is the noise: the whole engine against itself, measured in the same way.
"""

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from statistics import median
from time import thread_time
from types import CodeType
from typing import Any

MEASURED = ("engine.ingress", "workers.link", "workers.stack")
"""Modules whose counters are taken out, and those within."""
KEPT_ASIDE = {"_packets_out", "_bytes_out", "total"}
"""Counts that are kept in the process and written to shared memory now and then: they are taken out, too."""
CASES = {
    "udp up": "a datagram of 200 bytes from a program",
    "tcp up": "a segment of 1,400 bytes from a program",
    "tcp down": "32 KiB to a program, and its acknowledgment",
}
ROUNDS, PACKETS = 40, 4000
PAYLOAD = 32 * 1024  # bytes to the program for each acknowledgment
ROUND_TRIP = 50e-6
"""Seconds that pass with each batch, by a clock of our own: to a program that seems far away would be sent at a pace."""
MSS = bytes((2, 4)) + (65495).to_bytes(2, "big")
"""TCP option of the program's SYN (RFC 9293, 3.7.1): as on an interface with offload."""
APP, REMOTE = bytes((192, 0, 2, 2)), bytes((203, 0, 113, 10))


class _Without(ast.NodeTransformer):
    """Takes out what writes a counter; the value of such a statement is still computed where it does something."""

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        if not _is_counter(node.target):
            return node
        calls = any(isinstance(part, ast.Call) for part in ast.walk(node.value))
        return ast.copy_location(ast.Expr(node.value) if calls else ast.Pass(), node)

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        is_cell = isinstance(node.targets[0], ast.Subscript) and _is_counter(node.targets[0])
        return ast.copy_location(ast.Pass(), node) if is_cell else node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        is_observe = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "observe"
        return ast.copy_location(ast.Pass(), node) if is_observe else node


def _is_counter(target: ast.expr) -> bool:
    if isinstance(target, ast.Subscript):
        return _name(target.value) in ("counters", "_counters")
    return _name(target) in KEPT_ASIDE


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def without_counters(source: str) -> ast.Module:
    """Return the module without the statements that write counters."""
    return ast.fix_missing_locations(_Without().visit(ast.parse(source)))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile anew, past the cached bytecode of the whole module."""
        path = self.get_filename(fullname)
        return compile(without_counters(self.get_data(path).decode()), path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and fullname.startswith(MEASURED):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class Bench:
    """The master's end, the ring and one worker's stack in one process. Made after _Finder is, if it is."""

    def __init__(self) -> None:
        from asyncio import new_event_loop

        from engine.ingress import BATCH, Ingress, Shard
        from shared.config import StackConfig
        from shared.pool import Pool, PoolLayout
        from shared.wire.virtio import HEADER_LEN
        from workers import link
        from workers.stack.stack import Stack

        self.batch = BATCH
        self.pool = Pool.create(PoolLayout(1, 64, 1024))
        self.packets: list[bytes] = []
        self.now = 1000.0
        self.written: Sequence[Any] = ()
        doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        self.ingress = Ingress(
            -1,
            self.pool,
            [Shard(self.pool.ring(0), self.pool.free_ring(0), doorbell)],
            self.pool.counters[1],
            header_len=HEADER_LEN,
            read=self._read,
        )
        link.os = self  # type: ignore[attr-defined,assignment]
        self.link = link.Link(
            new_event_loop(),
            ring=self.pool.ring(0),
            free_ring=self.pool.free_ring(0),
            slots=self.pool.slots,
            doorbell=doorbell,
            tun_fd=-1,
            header_len=HEADER_LEN,
            counters=self.pool.counters[0],
        )
        self.stack = self.link.stack = Stack(
            StackConfig(mtu=65535, offload=True),
            transmit=self.link.transmit,
            on_syn=self._on_syn,
            on_datagram=lambda *_: None,
            secret=bytes(16),
            counters=self.pool.counters[0],
        )
        self._connect()

    # the tun

    def _read(self, fd: int, targets: Sequence[memoryview]) -> int:
        if not self.packets:
            raise BlockingIOError
        packet = self.packets.pop()
        targets[0][: len(packet)] = packet
        return len(packet)

    def writev(self, fd: int, parts: Sequence[Any]) -> int:
        """Stands for os.writev: what the stack writes is looked at by `_connect` alone."""
        self.written = parts
        return 100

    def carry(self, packets: list[bytes]) -> float:
        """Carry packets from the tun through the stack; return the seconds."""
        self.packets = packets[::-1]
        self.now += ROUND_TRIP
        began = thread_time()
        now = self.now
        while self.packets:
            self.ingress.read_batch()
            while self.link._serve_batch(now):
                pass
        return thread_time() - began

    # the program and the relay

    def _on_syn(self, connection: Any) -> None:
        self.connection = connection
        connection.handler = self
        connection.accept(self.now)

    def on_data(self, data: memoryview, /) -> int:
        """The relay takes all."""
        return len(data)

    def on_send_space(self) -> None:
        """The relay sends when it is told to."""

    def on_closed(self, reason: object, /) -> None:
        """Nothing ends while we measure."""
        raise AssertionError(reason)

    on_eof = on_closed

    def _connect(self) -> None:
        self.seq, self.ack = 1000, 0
        self.carry([self.segment(0x02, b"", MSS)])
        synack = b"".join(map(bytes, self.written))
        self.seq += 1
        self.ack = int.from_bytes(synack[34:38], "big") + 1
        self.carry([self.segment(0x10, b"")])

    def segment(self, flags: int, payload: bytes, options: bytes = b"") -> bytes:
        """A segment from the program, as the kernel hands it over: checksums vouched for."""
        tcp = (40000).to_bytes(2, "big") + (80).to_bytes(2, "big") + self.seq.to_bytes(4, "big")
        offset = (20 + len(options)) // 4 << 4
        tcp += self.ack.to_bytes(4, "big") + bytes((offset, flags)) + b"\xff\xff" + bytes(4)
        return _ip(6, tcp + options + payload)

    def udp_up(self, count: int) -> float:
        """Seconds of a datagram."""
        packet = _ip(17, (40001).to_bytes(2, "big") + (9).to_bytes(2, "big") + (208).to_bytes(2, "big") + bytes(202))
        return sum(self.carry([packet] * self.batch) for _ in range(count // self.batch)) / (
            count // self.batch * self.batch
        )

    def tcp_up(self, count: int) -> float:
        """Seconds of a segment."""
        took = 0.0
        for _ in range(count // self.batch):
            packets = []
            for _ in range(self.batch):
                packets.append(self.segment(0x10, bytes(1400)))
                self.seq = (self.seq + 1400) & 0xFFFFFFFF
            took += self.carry(packets)
        return took / (count // self.batch * self.batch)

    def tcp_down(self, count: int) -> float:
        """Seconds of a send and its acknowledgment; the bytes are there already."""
        took = 0.0
        for _ in range(count):
            began = thread_time()
            left = PAYLOAD
            while left:
                space = self.connection.send_buffer()
                assert space is not None, "all is acknowledged"
                size = min(len(space), left)
                self.connection.commit(size, self.now)
                left -= size
            took += thread_time() - began
            self.ack = (self.ack + PAYLOAD) & 0xFFFFFFFF
            took += self.carry([self.segment(0x10, b"")])
        return took / count

    def run(self, case: str, count: int) -> float:
        """Measure one case; seconds per packet."""
        return {"udp up": self.udp_up, "tcp up": self.tcp_up, "tcp down": self.tcp_down}[case](count)


def _ip(protocol: int, transport: bytes) -> bytes:
    """virtio header that vouches for the checksum (F_DATA_VALID), and IPv4."""
    total = (20 + len(transport)).to_bytes(2, "big")
    return (
        b"\x02" + bytes(9) + b"\x45\x00" + total + bytes((0, 0, 0x40, 0, 64, protocol, 0, 0)) + APP + REMOTE + transport
    )


def _serve(without: bool) -> None:
    """A measuring process: a line with a case and a number of packets in, one with seconds per packet out."""
    if without:
        sys.meta_path.insert(0, _Finder())
    bench = Bench()
    for line in sys.stdin:
        case, _, count = line.strip().partition(":")
        seconds = bench.run(case, int(count))
        counted = bench.pool.counters[0][0]  # Cell.PACKETS_IN
        assert bool(counted) is not without, "what is measured is not what it should be"
        print(seconds, flush=True)


@contextmanager
def _measurer(name: str) -> Iterator[Callable[[str, int], float]]:
    """A measuring process, on one processor."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.micro.counters", "--serve", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def measure(case: str, count: int) -> float:
        requests.write(f"{case}:{count}\n")
        requests.flush()
        return float(answers.readline())

    with process:
        yield measure
        requests.close()


def measured(case: str, rounds: int, packets: int, against: str) -> Iterator[tuple[float, float]]:
    """Yield microseconds per packet with counters and of `against` (with, without), round by round, who is first changing."""
    with _measurer("with") as having, _measurer(against) as lacking:
        for measure in having, lacking:
            measure(case, packets)  # warm
        for number in range(rounds):
            if number % 2:
                second = lacking(case, packets)
                yield having(case, packets) * 1e6, second * 1e6
            else:
                yield having(case, packets) * 1e6, lacking(case, packets) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.micro.counters", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--packets", type=int, default=PACKETS, help=f"of a round, default {PACKETS}")
    parser.add_argument("--serve", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve == "without")
        return
    print(
        f"| us, median of {options.rounds} rounds in turns | with counters | without | they cost | noise |\n|---|---|---|---|---|"
    )
    for case, title in CASES.items():
        packets = options.packets // 4 if case == "tcp down" else options.packets
        pairs = list(measured(case, options.rounds, packets, "without"))
        same = _cost(list(measured(case, options.rounds, packets, "with")))
        with_, without = (median(times) for times in zip(*pairs, strict=True))
        print(f"| {title} | {with_:.2f} | {without:.2f} | {_cost(pairs):+.1%} | {same:+.1%} |", flush=True)


def _cost(pairs: Sequence[tuple[float, float]]) -> float:
    return median(first / second for first, second in pairs) - 1


if __name__ == "__main__":
    main()

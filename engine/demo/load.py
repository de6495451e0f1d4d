"""The demo's applications, which know nothing of a proxy: `python -m engine.demo.load --addresses ADDRESS...`.

Runs the PHASES one after another against the targets on each ADDRESS and checks all that comes back. Prints the
messages of engine/demo/meter.py. Exits 0 whatever the results are.
"""

import argparse
import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, cycle, islice
from time import monotonic
from typing import NamedTuple

import uvloop

from engine.demo import bulk
from engine.demo.meter import Meter, PhaseResult, Progress, say
from engine.demo.targets import (
    BULK_PORT,
    DATAGRAM_MAX,
    ECHO_PORT,
    HTTP_PORT,
    RECEIVE_BUFFER,
    REFUSED_PORT,
    http_request,
    http_response,
)

__all__ = ["BULK_FLOWS", "PHASES", "Phase"]

BULK_FLOWS = 4
"""TCP flows of each throughput phase."""
CONNECTION_CLIENTS = 32
"""Applications that open one short connection after another."""
CONNECTIONS_MAX = 20_000
"""Connections per run: fewer than the 28,232 ephemeral ports, each of which rests in TIME-WAIT for a minute."""
HTTP_CLIENTS = 16
TOKEN_SIZE = 32
"""Bytes of the random token that a short connection sends and must get back."""
ANSWER_TIMEOUT = 10.0
"""Seconds to wait for a connection or an answer over TCP."""
DATAGRAM_TIMEOUT = 3.0
"""Seconds without an echo after which the datagrams on the way count as lost."""
DATAGRAM_SIZES = (0, 1, 200, 1200, 1472, 4000, 65_507)
"""Payload bytes: the edges, DNS and QUIC sizes, the most of an Ethernet frame, more than that, and the most of UDP over IPv4.

With its SOCKS5 header the largest no longer fits one datagram to the proxy: it goes in fragments (RFC 1928, section 7).
"""
DATAGRAMS_PER_SIZE = 100
DATAGRAM_WINDOW, DATAGRAM_WINDOW_SIZE = 32, 64 * 1024
"""Datagrams, and payload bytes, on the way at a time: less than any default socket buffer holds, so that none need be lost."""
UNREACHABLE = {socket.AF_INET: "203.0.113.99", socket.AF_INET6: "2001:db8::99"}
"""Addresses to which the proxy has no route."""
ERRORS_MAX = 5
"""Errors reported per phase."""


class WrongAnswer(Exception):
    """What came back is not what was sent."""


# throughput: blocking sockets in threads, which is the shortest way and waits outside the interpreter


def _bulk_phase(transfer: Callable[..., int], name: str, addresses: Sequence[str], seconds: float) -> PhaseResult:
    meter = Meter(name, scale=8e-9)
    verified, errors = 0, []
    with ThreadPoolExecutor(BULK_FLOWS) as pool:
        flows = [
            (address, pool.submit(_bulk_flow, transfer, address, seconds, meter))
            for address in islice(cycle(addresses), BULK_FLOWS)
        ]
        for address, flow in flows:
            try:
                verified += flow.result()
            except (OSError, bulk.TransferError) as error:
                errors.append(f"{address}: {error}")
    return PhaseResult(phase=name, rate=meter.rate(), bytes_verified=verified, errors=errors)


def _bulk_flow(transfer: Callable[..., int], address: str, seconds: float, meter: Meter) -> int:
    with socket.create_connection((address, BULK_PORT), timeout=ANSWER_TIMEOUT) as flow:
        return transfer(flow, seconds, meter.add)


# many small exchanges: coroutines on uvloop


Client = Callable[[str, "Meter", "Deadline"], Awaitable[int]]
"""An application: given an address, works until the deadline and returns the bytes it has verified."""


class Deadline(NamedTuple):
    """When the applications of a phase stop."""

    at: float
    count_max: float

    def passed(self, meter: Meter) -> bool:
        """Whether the time is over, or enough has been done."""
        return monotonic() >= self.at or meter.count >= self.count_max


def _clients_phase(
    client: Client, clients: int, count_max: float, name: str, addresses: Sequence[str], seconds: float
) -> PhaseResult:
    return uvloop.run(_run_clients(client, clients, count_max, name, addresses, seconds))


async def _run_clients(
    client: Client, clients: int, count_max: float, name: str, addresses: Sequence[str], seconds: float
) -> PhaseResult:
    meter = Meter(name)
    deadline = Deadline(monotonic() + seconds / 2, count_max)
    verified, errors = 0, []

    async def guarded(address: str) -> None:
        nonlocal verified
        try:
            of_this_one = await client(address, meter, deadline)
            verified += of_this_one  # in one line with `await` it would add to the sum of long ago
        except (OSError, WrongAnswer) as error:
            errors.append(f"{address}: {str(error) or type(error).__name__}")

    await asyncio.gather(*(guarded(address) for address in islice(cycle(addresses), clients)))
    return PhaseResult(phase=name, rate=meter.rate(), bytes_verified=verified, errors=errors[:ERRORS_MAX])


async def _connection_client(address: str, meter: Meter, deadline: Deadline) -> int:
    """Connect, send a token, get it back, close; again and again."""
    verified = 0
    while not deadline.passed(meter):
        token = os.urandom(TOKEN_SIZE)
        with _tcp_socket(address) as flow:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(flow, (address, ECHO_PORT))
                await _exchange(flow, token, token)
        verified += TOKEN_SIZE
        meter.add(1)
    return verified


async def _http_client(address: str, meter: Meter, deadline: Deadline) -> int:
    """Send one request after another on one connection."""
    verified = 0
    with _tcp_socket(address) as flow:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(flow, (address, HTTP_PORT))
        for number in count():
            if deadline.passed(meter):
                break
            path = f"/{number}"
            async with asyncio.timeout(ANSWER_TIMEOUT):
                verified += await _exchange(flow, http_request(path), http_response(path))
            meter.add(1)
    return verified


def _tcp_socket(address: str) -> socket.socket:
    flow = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    flow.setblocking(False)
    return flow


async def _exchange(flow: socket.socket, request: bytes, response: bytes) -> int:
    """Send `request` and receive exactly `response`; return its size. Raises WrongAnswer, OSError."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(flow, request)
    received = b""
    while len(received) < len(response) and (piece := await loop.sock_recv(flow, len(response))):
        received += piece
    if received != response:
        raise WrongAnswer(f"{received[:80]!r} received where {response[:80]!r} was expected")
    return len(received)


# UDP


def _udp_phase(family: socket.AddressFamily, name: str, addresses: Sequence[str], seconds: float) -> PhaseResult:
    """Echo datagrams of every size; not timed, so `seconds` is of no account."""
    meter = Meter(name)
    totals: dict[int, tuple[int, int]] = {}
    errors = []
    for size in DATAGRAM_SIZES:
        sent = received = 0
        for address in _of_family(addresses, family):
            sent += DATAGRAMS_PER_SIZE
            try:
                received += _echo_datagrams(family, address, size, meter)
            except (OSError, WrongAnswer) as error:
                errors.append(f"{address}, {size} bytes: {error}")
        totals[size] = sent, received
        if received < sent:
            errors.append(f"{size} bytes: {received} of {sent} datagrams came back")
    verified = sum(size * received for size, (_, received) in totals.items())
    return PhaseResult(
        phase=name, rate=meter.rate(), bytes_verified=verified, datagrams=totals, errors=errors[:ERRORS_MAX]
    )


def _echo_datagrams(family: socket.AddressFamily, address: str, size: int, meter: Meter) -> int:
    """Send DATAGRAMS_PER_SIZE datagrams, a window at a time; return how many came back. Raises WrongAnswer, OSError."""
    window = max(1, min(DATAGRAM_WINDOW, DATAGRAM_WINDOW_SIZE // max(size, 1)))
    payloads: Iterator[bytes] = (os.urandom(size) for _ in range(DATAGRAMS_PER_SIZE))
    on_the_way: Counter[bytes] = Counter()
    received = 0
    with socket.socket(family, socket.SOCK_DGRAM) as flow:
        flow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        flow.settimeout(DATAGRAM_TIMEOUT)
        flow.connect((address, ECHO_PORT))
        while True:
            for payload in islice(payloads, window - on_the_way.total()):
                on_the_way[payload] += 1
                flow.send(payload)
            if not on_the_way:
                return received
            try:
                echo = flow.recv(DATAGRAM_MAX)
            except TimeoutError:
                meter.add(0)  # says that the load is alive
                return received
            if echo not in on_the_way:
                raise WrongAnswer(f"a datagram of {len(echo)} bytes came back that was not sent, or came twice")
            on_the_way -= Counter([echo])
            received += 1
            meter.add(1)


# failures that an application must be told about


def _refusal_phase(
    targets: dict[socket.AddressFamily, str] | None,
    expected: frozenset[int],
    name: str,
    addresses: Sequence[str],
    seconds: float,
) -> PhaseResult:
    """Connect where nobody answers, once per family: the attempt must fail with an error of `expected`, at once."""
    errors = []
    for family in socket.AF_INET, socket.AF_INET6:
        for address in _of_family(addresses, family)[:1]:
            target = address if targets is None else targets[family]
            code = _connect_error(target)
            if code not in expected:
                wanted = " or ".join(sorted(errno.errorcode[code] for code in expected))
                errors.append(f"{target}: {errno.errorcode[code] if code else 'connected'} instead of {wanted}")
    return PhaseResult(phase=name, errors=errors)


def _connect_error(address: str) -> int:
    """Return the errno of an attempt to connect to REFUSED_PORT, 0 if it succeeds."""
    try:
        socket.create_connection((address, REFUSED_PORT), timeout=ANSWER_TIMEOUT).close()
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _of_family(addresses: Sequence[str], family: socket.AddressFamily) -> list[str]:
    return [address for address in addresses if (":" in address) == (family == socket.AF_INET6)]


class Phase(NamedTuple):
    """A kind of load: its title, the unit of its rate, and the function (name, addresses, seconds) that runs it."""

    title: str
    unit: str
    run: Callable[[str, Sequence[str], float], PhaseResult]


_UNREACHABLE_ERRORS = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH))

PHASES: dict[str, Phase] = {
    "tcp_up": Phase("TCP up", "Gbit/s", partial(_bulk_phase, bulk.upload)),
    "tcp_down": Phase("TCP down", "Gbit/s", partial(_bulk_phase, bulk.download)),
    "connections": Phase(
        "New connections",
        "connections/s",
        partial(_clients_phase, _connection_client, CONNECTION_CLIENTS, CONNECTIONS_MAX),
    ),
    "http": Phase("HTTP keep-alive", "requests/s", partial(_clients_phase, _http_client, HTTP_CLIENTS, float("inf"))),
    "udp_ipv4": Phase("UDP over IPv4", "datagrams/s", partial(_udp_phase, socket.AF_INET)),
    "udp_ipv6": Phase("UDP over IPv6", "datagrams/s", partial(_udp_phase, socket.AF_INET6)),
    "refused": Phase("Refused port", "", partial(_refusal_phase, None, frozenset((errno.ECONNREFUSED,)))),
    "unreachable": Phase("Unreachable address", "", partial(_refusal_phase, UNREACHABLE, _UNREACHABLE_ERRORS)),
}
"""Name -> phase, in the order in which they run."""


def main() -> None:
    """Run all phases."""
    parser = argparse.ArgumentParser(prog="python -m engine.demo.load")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each throughput phase")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="run these only")
    parser.add_argument("--addresses", nargs="+", required=True, metavar="ADDRESS")
    arguments = parser.parse_args()
    for name in arguments.phases:
        say(Progress(name, 0.0))
        say(PHASES[name].run(name, arguments.addresses, arguments.seconds))


if __name__ == "__main__":
    main()

"""What a question costs beyond its server's own time: each asks for a new name, and tells how long its server has held it.

    python -m loadtests.bench.dns_miss server HOST
    python -m loadtests.bench.dns_miss client HOST SECONDS

The server holds each question for DELAY seconds, and answers with an address that says how many microseconds that really was
(10.a.b.c). The client asks RATE questions a second, each from a socket of its own, as programs do; it prints one JSON object:
`asked`, `lost`, and `p50` and `p99` of the milliseconds from question to answer without what the server has held.
"""

import asyncio
import json
import random
import selectors
import socket
import sys
import time
from statistics import quantiles
from typing import cast

import dns.flags
import dns.message
import dns.rrset

PORT = 53
DELAY = 0.020
"""Seconds, as to a resolver in another city."""
RATE = 200
"""Questions a second: a household that surfs, not a flood."""
WARM_UP = 20
"""First questions, which open associations and are not counted."""
TIMEOUT = 5.0
"""Seconds for an answer; then it is lost."""
ZONE = "miss.example"


class Server(asyncio.DatagramProtocol):
    """Answers every question after DELAY."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It listens."""
        self.transport = cast(asyncio.DatagramTransport, transport)
        print("listening", flush=True)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        """Hold a question."""
        came = time.perf_counter_ns()
        query = dns.message.from_wire(data)
        asyncio.get_running_loop().call_later(DELAY, self._answer, query, peer, came)

    def _answer(self, query: dns.message.Message, peer: tuple[str, int], came: int) -> None:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        held = (time.perf_counter_ns() - came) // 1000
        address = f"10.{held >> 16 & 255}.{held >> 8 & 255}.{held & 255}"
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 300, "IN", "A", address))
        self.transport.sendto(answer.to_wire(), peer)


async def serve(host: str) -> None:
    """Answer for ever."""
    await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=(host, PORT))
    await asyncio.Event().wait()


def held_by(answer: bytes) -> float:
    """Return the milliseconds that the server has held a question."""
    _, a, b, c = dns.message.from_wire(answer).answer[0][0].to_text().split(".")
    return (int(a) << 16 | int(b) << 8 | int(c)) / 1000


def load(host: str, seconds: float) -> dict[str, float]:
    """Ask, and return what main prints."""
    count = WARM_UP + int(seconds * RATE)
    run = random.randbytes(4).hex()
    questions = [dns.message.make_query(f"n{n}-{run}.{ZONE}", "A").to_wire() for n in range(count)]
    answers: list[tuple[int, int, bytes]] = []
    begun = time.monotonic()
    with selectors.DefaultSelector() as waiting:
        for number, question in enumerate(questions):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.connect((host, PORT))
            due = begun + number / RATE
            while (left := due - time.monotonic()) > 0:
                _take(waiting, answers, left)
            waiting.register(sock, selectors.EVENT_READ, (number, time.perf_counter_ns()))
            sock.send(question)
        deadline = time.monotonic() + TIMEOUT
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            _take(waiting, answers, left)
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    added = [took / 1e6 - held_by(answer) for number, took, answer in answers if number >= WARM_UP]
    lost = count - len(answers)
    if len(added) < 100:
        raise SystemExit(f"{len(added)} of {count} questions were answered")
    cuts = quantiles(added, n=100)
    return {"asked": count, "lost": lost, "p50": cuts[49], "p99": cuts[98]}


def _take(waiting: selectors.BaseSelector, answers: list[tuple[int, int, bytes]], timeout: float) -> None:
    """Take in what has come: number, nanoseconds since the question, and the answer."""
    for key, _ in waiting.select(timeout):
        now = time.perf_counter_ns()
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        number, asked = key.data
        answer = sock.recv(4096)
        waiting.unregister(sock)
        sock.close()
        answers.append((number, now - asked, answer))


def main(arguments: list[str]) -> None:
    """Command line; see the module's docstring."""
    if arguments[0] == "server":
        asyncio.run(serve(arguments[1]))
    else:
        print(json.dumps(load(arguments[1], float(arguments[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])

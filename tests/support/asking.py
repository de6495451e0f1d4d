"""Programs that ask for names, and go where they are sent, without a pause: for what must hold at every moment.

Each is a thread with sockets of its own in a namespace. A question or a visit that fails is given up after a moment, and the
next one begins: while the engine starts, stops or has been killed nobody owes them an answer.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread

import dns.exception
import dns.message
import dns.query
import dns.rdatatype

from tests.support.netns import Namespace, wait_until

__all__ = ["Asking", "asking"]

PATIENCE = 5.0  # seconds that each step of a question or visit waits
PAUSE = 0.05  # seconds between two: the machine has others to serve
WAIT = 120.0  # seconds

_FAILURES = (OSError, dns.exception.DNSException)


class Asking:
    """What has come of it so far: `done` counts answers and visits by program."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self._ended = Event()

    def wait_for_more(self, number: int = 3) -> None:
        """Wait until each program has had so many more answers."""
        wanted = {name: done + number for name, done in self.done.items()}
        try:
            wait_until(lambda: all(self.done[name] >= goal for name, goal in wanted.items()), timeout=WAIT)
        except AssertionError:
            raise AssertionError(f"after {WAIT:g} s {self.done} are done instead of {wanted}") from None

    def _run(self, name: str, act: Callable[[int], bool]) -> None:
        for number in count():
            if self._ended.wait(PAUSE):
                return
            try:
                self.done[name] += act(number)
            except _FAILURES:
                pass

    def stop(self) -> None:
        """Begin nothing more."""
        self._ended.set()


@contextmanager
def asking(client: Namespace, servers: Sequence[str], name: str) -> Iterator[Asking]:
    """Ask `servers` in turn, over UDP and over TCP, for new names and old ones; visit port 80 of `name` over IPv4 and IPv6.

    A visit asks the first server for the address, and has been successful when the web server has answered.
    """

    def question(number: int, tcp: bool) -> bool:
        asked = f"n{number}.who.example" if number % 2 else "who.example"
        query = dns.message.make_query(asked, "TXT")
        ask = dns.query.tcp if tcp else dns.query.udp
        answer = ask(query, servers[number % len(servers)], timeout=PATIENCE)
        return bool(answer.answer)

    def visit(number: int, kind: dns.rdatatype.RdataType) -> bool:
        answer = dns.query.udp(dns.message.make_query(name, kind), servers[0], timeout=PATIENCE)
        addresses = [data.to_text() for found in answer.answer if found.rdtype == kind for data in found]
        if not addresses:
            return False
        with socket.create_connection((addresses[0], 80), timeout=PATIENCE) as web:
            web.sendall(f"GET /page HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return web.recv(12) == b"HTTP/1.1 200"

    programs: dict[str, Callable[[int], bool]] = {
        "questions over UDP": lambda number: question(number, tcp=False),
        "questions over TCP": lambda number: question(number, tcp=True),
        "visits over IPv4": lambda number: visit(number, dns.rdatatype.A),
        "visits over IPv6": lambda number: visit(number, dns.rdatatype.AAAA),
    }
    made = Asking()
    made.done = dict.fromkeys(programs, 0)
    threads = [Thread(target=made._run, args=program) for program in programs.items()]
    with client.entered():  # a thread begins in the namespace of the one that starts it
        for thread in threads:
            thread.start()
    try:
        yield made
    finally:
        made.stop()
        for thread in threads:
            thread.join()

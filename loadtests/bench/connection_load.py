"""New connections per second: connect, one byte there and back, close; from several threads, blocking sockets.

    python -m loadtests.bench.connection_load ADDRESS FIRST_PORT END_PORT SECONDS THREADS

prints one JSON object: `opened`, `failed`, `seconds`. Blocking calls: under proxychains every connect blocks anyway.

    python -m loadtests.bench.connection_load ADDRESS PORT --probe

returns when one such connection has succeeded, and fails when none has for PROBE_TIMEOUT seconds.
"""

import json
import socket
import sys
import threading
import time
from itertools import cycle, islice

PROBE_TIMEOUT = 15.0
"""Seconds for a peer to carry its first connection."""
PROBE_INTERVAL = 0.1
CONNECT_TIMEOUT = 5.0
"""Seconds after which a connection has failed."""


def echo_once(address: str, port: int, timeout: float) -> None:
    """Make one connection and see one byte come back. Raises OSError."""
    with socket.create_connection((address, port), timeout) as connection:
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise ConnectionError("closed without an echo")


def probe(address: str, port: int) -> None:
    """Return once a connection has succeeded. Raises SystemExit with the last error after PROBE_TIMEOUT seconds."""
    deadline = time.monotonic() + PROBE_TIMEOUT
    while True:
        try:
            return echo_once(address, port, timeout=0.5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"no connection in {PROBE_TIMEOUT:g} s, the last one: {error}") from error
            time.sleep(PROBE_INTERVAL)


class Load:
    """Counts of all threads together; each adds its own when it ends."""

    def __init__(self, address: str, ports: range, seconds: float) -> None:
        self._address = address
        self._ports = ports
        self._end_at = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.opened = 0
        self.failed = 0

    def run(self, thread: int) -> None:
        """Make connections one after the other until the time is up; `thread` decides at which port to begin."""
        opened = failed = 0
        for port in islice(cycle(self._ports), thread, None):
            if time.monotonic() >= self._end_at:
                break
            try:
                echo_once(self._address, port, CONNECT_TIMEOUT)
                opened += 1
            except OSError:
                failed += 1
        with self._lock:
            self.opened += opened
            self.failed += failed


def load(address: str, ports: range, seconds: float, threads: int) -> dict[str, float]:
    """Run the load and return what main prints."""
    started = time.monotonic()
    counts = Load(address, ports, seconds)
    workers = [threading.Thread(target=counts.run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"opened": counts.opened, "failed": counts.failed, "seconds": time.monotonic() - started}


def main(arguments: list[str]) -> None:
    """Command line; see the module's docstring."""
    if arguments[-1] == "--probe":
        probe(arguments[0], int(arguments[1]))
    else:
        address, first, end, seconds, threads = arguments
        print(json.dumps(load(address, range(int(first), int(end)), float(seconds), int(threads))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Honest traffic to be measured, and the server that talks for as long as anybody listens."""

import selectors
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.netns import Topology, wait_until
from tests.support.sockets import connect

__all__ = ["Connects", "Meter", "Talker", "flow_key"]

PIECE = 256 * 1024
ZEROS = bytes(PIECE)
QUIET = 1.0  # seconds without a byte taken
CONNECT_EVERY = 0.25  # seconds
Ends = tuple[socket.socket, socket.socket]


def flow_key(app: socket.socket) -> bytes:
    """Return addresses and ports of a flow as they stand in the packets of the application, whose socket this is."""
    ends = app.getsockname()[:2], app.getpeername()[:2]
    addresses = b"".join(socket.inet_pton(app.family, host) for host, _ in ends)
    return addresses + b"".join(port.to_bytes(2, "big") for _, port in ends)


class _Threads:
    """Threads that run until the `with` block is left."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._end()
        for thread in self._threads:
            thread.join()

    def _end(self) -> None:
        """Wake whoever waits."""


class Meter(_Threads):
    """Flows that carry zeros as fast as they can, (sending socket, receiving socket) each; counts what arrives."""

    def __init__(self, **flows: Ends) -> None:
        super().__init__()
        self._flows = flows
        self._received = dict.fromkeys(flows, 0)
        self._faults: list[str] = []
        for name, (sender, receiver) in flows.items():
            self._threads.append(threading.Thread(target=self._send, args=(name, sender)))
            self._threads.append(threading.Thread(target=self._receive, args=(name, receiver)))

    def rate(self, seconds: float) -> float:
        """Measure for `seconds`; return bytes per second, of all flows together."""
        began, before = time.monotonic(), sum(self._received.values())
        time.sleep(seconds)
        return (sum(self._received.values()) - before) / (time.monotonic() - began)

    def faults(self) -> list[str]:
        """What went wrong with the flows: bytes that nobody sent, or an end that nobody wanted."""
        return self._faults

    def _send(self, name: str, sock: socket.socket) -> None:
        try:
            while not self._stop.is_set():
                sock.sendall(ZEROS)
        except OSError as error:
            self._note(f"{name}: sending ended: {error}")

    def _receive(self, name: str, sock: socket.socket) -> None:
        buffer = bytearray(PIECE)
        try:
            while size := sock.recv_into(buffer):
                self._received[name] += size
                if buffer[:size].count(0) != size:
                    self._note(f"{name}: bytes that nobody has sent")
            self._note(f"{name}: end of file")
        except OSError as error:
            self._note(f"{name}: receiving ended: {error}")

    def _note(self, fault: str) -> None:
        if not self._stop.is_set():
            self._faults.append(fault)

    def _end(self) -> None:
        for ends in self._flows.values():
            for sock in ends:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class Connects(_Threads):
    """New flows, one after the other. `took`: seconds of each, `failed`: how many did not come about."""

    def __init__(self, net: Topology, server: socket.socket) -> None:
        super().__init__()
        self.took: list[float] = []
        self.failed = 0
        self._net, self._server = net, server
        self._threads.append(threading.Thread(target=self._run))

    def _run(self) -> None:
        while not self._stop.wait(CONNECT_EVERY):
            began = time.monotonic()
            try:
                app = connect(self._net.client, self._server.getsockname())
                peer, _ = self._server.accept()
            except OSError:
                self.failed += 1
                continue
            self.took.append(time.monotonic() - began)
            app.close()
            peer.close()


class Talker(_Threads):
    """Sends `amount` bytes to everybody who connects to `server`, and keeps the connection.

    More would show the limit of the kernel's memory for sockets (net.ipv4.tcp_mem), which all programs of a machine share.
    """

    def __init__(self, server: socket.socket, amount: int) -> None:
        super().__init__()
        self._server = server
        self._amount = amount
        self._spoken: dict[socket.socket, int] = {}
        self._spoke_at = time.monotonic()
        server.setblocking(False)
        self._threads.append(threading.Thread(target=self._run))

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._server:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    if key.fileobj is self._server:
                        self._accept(selector)
                    else:
                        self._talk(selector, key.fileobj)  # type: ignore[arg-type]
            for peer in self._spoken:
                peer.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(BlockingIOError):
            while True:
                peer, _ = self._server.accept()
                peer.setblocking(False)
                self._spoken[peer] = 0
                if self._amount:
                    selector.register(peer, selectors.EVENT_WRITE)

    def wait_until_quiet(self, timeout: float) -> None:
        """Wait until nobody takes anything any more: all buffers on the way are full."""
        wait_until(lambda: time.monotonic() - self._spoke_at > QUIET, timeout, what="full buffers")

    def _talk(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        try:
            self._spoken[peer] += peer.send(ZEROS)
            self._spoke_at = time.monotonic()
            is_over = self._spoken[peer] >= self._amount
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            selector.unregister(peer)

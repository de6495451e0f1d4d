"""One kernel for all processes of an engine: a server in the test, and what makes its clients believe that they run on a Mac."""

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.darwin.kernel import Kernel

__all__ = ["SITE", "become_mac", "serve"]

SITE = Path(__file__).parent / "site"
REQUEST_MAX = 256 * 1024
ABSENT = {
    "os": (
        *("eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise", "splice"),
        *("sched_getaffinity", "sched_setaffinity", "setresgid", "setresuid", "getresuid", "getresgid", "prlimit"),
    ),
    "socket": (
        *(
            "AF_NETLINK",
            "AF_PACKET",
            "AF_VSOCK",
            "NETLINK_ROUTE",
            "SOCK_NONBLOCK",
            "SOCK_CLOEXEC",
            "SO_MARK",
            "SO_BINDTODEVICE",
        ),
        *(
            "MSG_ERRQUEUE",
            "SO_DOMAIN",
            "SO_PROTOCOL",
            "SO_PEERCRED",
            "TCP_USER_TIMEOUT",
            "TCP_DEFER_ACCEPT",
            "SO_INCOMING_CPU",
        ),
    ),
    "signal": ("pidfd_send_signal",),
    "fcntl": ("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE"),
    "select": ("epoll",),
    "resource": ("prlimit",),
}
"""What Python has on Linux and not on macOS: whoever reaches for it fails, as it would there."""
PICKERS = ("engine.tun", "engine.netconf", "engine.processes")


@contextmanager
def serve(kernel: Kernel, path: Path) -> Iterator[None]:
    """Answer for `kernel` at `path`, one thread per client."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o666)  # workers are another user
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(kernel, client), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join(5)


def answer(kernel: Kernel, client: socket.socket) -> None:
    """Do what one process asks for, until it ends."""
    with client, suppress(ConnectionError):  # some are killed while they ask
        while data := client.recv(REQUEST_MAX):
            name, arguments = pickle.loads(data)
            fds: list[int] = []
            try:
                result = getattr(kernel, name)(*arguments)
            except (OSError, AssertionError) as error:
                result = error
            else:
                if name.endswith("_socket"):
                    fds = [result[1]]
            socket.send_fds(client, [pickle.dumps(result)], fds)
            for fd in fds:
                os.close(fd)


class Client:
    """The kernel as a process of the engine sees it."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)

    def __call__(self, name: str, *arguments: Any) -> Any:
        with self._lock:
            self._socket.send(pickle.dumps((name, arguments)))
            data, fds, _, _ = socket.recv_fds(self._socket, REQUEST_MAX, 1)
        result = pickle.loads(data)
        if isinstance(result, BaseException):
            raise result
        if fds:
            os.set_inheritable(fds[0], False)
            return result[0], fds[0]
        return result


def become_mac(path: str) -> None:
    """Let every picker of a platform, from now on, pick macOS; its system calls go to the kernel at `path`."""
    import importlib

    import shared.system
    from shared.system import darwin
    from tests.support.darwin.kqueue import KQUEUE
    from tests.support.darwin.stand_in import stand_in

    client = Client(path)
    stand_in(client)
    darwin.select = KQUEUE  # type: ignore[attr-defined]
    for name in shared.system.__all__:
        setattr(shared.system, name, getattr(darwin, name))
    bind_to_device = socket.SO_BINDTODEVICE

    def bind_to_interface(sock: socket.socket, index: int) -> None:
        client("bind_to_interface", int(sock.family), index)
        sock.setsockopt(socket.SOL_SOCKET, bind_to_device, b"lo")  # nothing of a test is to leave this machine

    shared.system.bind_to_interface = bind_to_interface
    for module, names in ABSENT.items():
        for name in names:
            vars(importlib.import_module(module)).pop(name, None)
    # That kernel asks for no privilege.
    importlib.import_module("engine.cli.options").need_root = lambda command, because: None
    for picker in PICKERS:
        importlib.import_module(picker).sys = SimpleNamespace(platform="darwin")

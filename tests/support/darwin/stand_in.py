"""Puts a Kernel of tests in the place of engine/darwin/system.py: in this process, or by a socket in others."""

import os
import socket
from collections.abc import Callable
from typing import Any

from engine.darwin import system

__all__ = ["Call", "stand_in"]

Call = Callable[..., Any]
"""call(name, *arguments): returns what the kernel does; for sockets, (handle, descriptor)."""

MAKE_SOCKETS = ("control_socket", "inet_socket", "route_socket", "monitor_socket")
TAKE_SOCKETS = ("connect_control", "get_option", "set_option", "ioctl")
PLAIN = (
    "interface_index",
    "interface_name",
    "sysctl",
    "sysctl_by_name",
    "run",
    "process_path",
    "process_info",
    "process_ids",
)


class KernelSocket(socket.socket):
    """A socket that the kernel knows by a number."""

    handle: int


def stand_in(call: Call, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have every function of the module ask `call`. `put` as setattr: monkeypatch's, where it is to be undone."""

    def make(name: str) -> Callable[..., KernelSocket]:
        def function(*arguments: Any) -> KernelSocket:
            handle, fd = call(name, *arguments)
            sock = KernelSocket(fileno=fd)
            sock.handle = handle
            if name == "monitor_socket":
                sock.setblocking(False)
            return sock

        return function

    def take(name: str) -> Callable[..., Any]:
        return lambda sock, *arguments: call(name, sock.handle, *arguments)

    def plain(name: str) -> Callable[..., Any]:
        return lambda *arguments: call(name, *arguments)

    for name in MAKE_SOCKETS:
        put(system, name, make(name))
    for name in TAKE_SOCKETS:
        put(system, name, take(name))
    for name in PLAIN:
        put(system, name, plain(name))
    put(system, "send_route", lambda sock, data: call("send_route", sock.handle, data, os.getpid()))
    put(system, "batch_receiver", lambda: None)

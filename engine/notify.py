"""Readiness for systemd: one datagram to $NOTIFY_SOCKET, as sd_notify(3) describes."""

import os
import socket

__all__ = ["notify", "watchdog_interval"]


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1 that the service manager expects, half of its patience (sd_watchdog_enabled(3))."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6


def notify(state: str) -> None:
    """Send `state` (READY=1, STOPPING=1) when the service manager asked for it; failures are its concern, not ours."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect("\0" + path[1:] if path.startswith("@") else path)
            sender.send(state.encode())
        except OSError:
            pass

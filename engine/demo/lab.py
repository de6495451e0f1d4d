"""A private piece of Internet in two network namespaces, for the demo, the end-to-end tests and the benchmark.

    +--- client -------------------+                +--- internet ------------------------------+
    |  applications, the engine    |   veth pair    |  SOCKS server       targets, on lo:       |
    |  eth0  192.0.2.2/24        --+----------------+--  eth0  192.0.2.1/24     203.0.113.10    |
    |        2001:db8:1::2/64      |                |          2001:db8:1::1/64 198.51.100.10   |
    +------------------------------+                |                           2001:db8::10    |
                                                    +-------------------------------------------+

The namespaces have no name and no mount point: a descriptor of this process and the processes inside are all that keeps
them alive. Once these have ended, however they ended, the kernel takes everything back; and any number of labs can run
at once. Nothing of the host is changed. For a look inside: `nsenter --net=PATH`, where PATH is `Namespace.path`.
"""

import ctypes
import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from select import poll
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from engine.demo.service import Service

__all__ = ["TARGETS_V4", "TARGETS_V6", "UPSTREAM_V4", "UPSTREAM_V6", "Lab", "LabError", "Namespace"]

CLIENT_V4, UPSTREAM_V4 = "192.0.2.2", "192.0.2.1"
"""The two ends of the IPv4 link (RFC 5737, TEST-NET-1)."""
CLIENT_V6, UPSTREAM_V6 = "2001:db8:1::2", "2001:db8:1::1"
"""The two ends of the IPv6 link (RFC 3849)."""
TARGETS_V4 = ("203.0.113.10", "198.51.100.10")
"""IPv4 addresses of servers on the internet side (RFC 5737, TEST-NET-3 and TEST-NET-2)."""
TARGETS_V6 = ("2001:db8::10",)
"""IPv6 addresses of servers on the internet side."""

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once, without a second of duplicate address detection
_IFF_UP = 0x1  # linux/if.h
# The kernel would add one a second after the link came up, in the midst of somebody's comparison of network states.
_NO_LINK_LOCAL_ADDRESS = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
_OWN_NAMESPACE = "/proc/thread-self/ns/net"

# os.unshare and os.setns exist from Python 3.12 on; 3.11 is supported too.
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


class Namespace:
    """A network namespace without a name. Use as a context manager, or call `close`.

    Raises PermissionError without CAP_SYS_ADMIN, OSError when the kernel refuses for another reason.
    """

    def __init__(self) -> None:
        self._fd = _new_namespace()
        status = os.fstat(self._fd)
        self._identity = status.st_dev, status.st_ino

    @property
    def path(self) -> str:
        """A path that stands for the namespace while it exists, for nsenter and netlink (IFLA_NET_NS_FD)."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into the namespace for the body: sockets and children made there belong to it for ever.

        Only this thread moves. There must be no `await` in the body, because other tasks would move along.
        """
        home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self._fd, _CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _check(_libc.setns(home, _CLONE_NEWNET), "setns")
        finally:
            os.close(home)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start `command` inside; `options` are those of subprocess.Popen."""
        with self.entered():
            return subprocess.Popen(command, **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run `command` inside to its end; `options` are those of subprocess.run."""
        with self.entered():
            return subprocess.run(command, **options)

    def start(self, name: str, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> Service:
        """Start a long-running `command` inside; see Service."""
        with self.entered():
            return Service(name, command, pass_fds=pass_fds)

    def processes(self) -> list[int]:
        """Return the ids of all processes in the namespace but this one."""
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and self._holds(int(entry))]

    def _holds(self, pid: int) -> bool:
        if pid == os.getpid():
            return False
        try:
            status = os.stat(f"/proc/{pid}/ns/net")
        except OSError:  # it has ended meanwhile
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def network_state(self) -> dict[str, list[str]]:
        """Return links, addresses, routes and rules as sorted text: equal before and after whoever tidies up properly."""
        with self.entered(), IPRoute() as netlink:
            return {
                "links": sorted(
                    f"{link.get_attr('IFLA_IFNAME')} mtu={link.get_attr('IFLA_MTU')} up={bool(link['flags'] & _IFF_UP)}"
                    for link in netlink.get_links()
                ),
                "addresses": _texts(netlink.get_addr(), ("family", "index", "prefixlen"), ("IFA_ADDRESS",)),
                "routes": _texts(
                    netlink.get_routes(),
                    ("family", "table", "type", "dst_len"),
                    ("RTA_TABLE", "RTA_DST", "RTA_GATEWAY", "RTA_OIF", "RTA_PRIORITY"),
                ),
                "rules": _texts(
                    netlink.get_rules(family=socket.AF_INET) + netlink.get_rules(family=socket.AF_INET6),
                    ("family", "table", "action", "dst_len", "src_len", "flags"),
                    ("FRA_PRIORITY", "FRA_TABLE", "FRA_DST", "FRA_SRC", "FRA_FWMARK", "FRA_IIFNAME", "FRA_OIFNAME"),
                ),
            }

    def close(self) -> None:
        """Kill what still runs inside and let the namespace go, with all its links, routes and rules."""
        if self._fd < 0:
            return
        for pid in self.processes():
            _kill(pid)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LabError(Exception):
    """The kernel refused a lab; `not_permitted` tells whether that is for want of root or a capability."""

    def __init__(self, code: int | None, reason: str) -> None:
        self.not_permitted = code in (errno.EPERM, errno.EACCES)
        need = "; it takes root, and in a container CAP_SYS_ADMIN and CAP_NET_ADMIN" if self.not_permitted else ""
        super().__init__(f"no network namespaces could be made for the lab: {reason}{need}")


class Lab:
    """The two namespaces of the picture above, ready for use inside `with Lab() as lab`.

    client    where the applications and the engine run
    internet  where proxies and targets run
    ipv6      whether the kernel has IPv6; without it only the IPv4 half is there
    """

    client: Namespace
    internet: Namespace
    ipv6: bool

    def __init__(self, *, default_routes: bool = True) -> None:
        """With `default_routes` False the client knows its own link only: it can reach a proxy on `internet` but no target.

        What reaches a target from such a client can have gone no other way than through the proxy.
        """
        self._default_routes = default_routes
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        """Build the lab. Raises LabError."""
        try:
            with ExitStack() as undo:
                self.client = undo.enter_context(Namespace())
                self.internet = undo.enter_context(Namespace())
                self.ipv6 = _has_ipv6(self.client)
                self._connect()
                self._undo = undo.pop_all()
        except OSError as error:
            raise LabError(error.errno, str(error)) from error
        except NetlinkError as error:
            raise LabError(error.code, str(error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def targets(self) -> tuple[str, ...]:
        """Addresses of the targets in the families that this kernel has."""
        return TARGETS_V4 + (TARGETS_V6 if self.ipv6 else ())

    def _connect(self) -> None:
        with self.client.entered(), IPRoute() as netlink:
            peer = {"ifname": "eth0", "net_ns_fd": self.internet.path}
            netlink.link("add", ifname="eth0", kind="veth", peer=peer)
        _configure(self.internet, UPSTREAM_V4, UPSTREAM_V6 if self.ipv6 else None, self.targets)
        _configure(self.client, CLIENT_V4, CLIENT_V6 if self.ipv6 else None, ())
        if self._default_routes:
            with self.client.entered(), IPRoute() as netlink:
                netlink.route("add", dst="0.0.0.0/0", gateway=UPSTREAM_V4)
                if self.ipv6:
                    netlink.route("add", dst="::/0", gateway=UPSTREAM_V6)


def _new_namespace() -> int:
    """Return a descriptor of a fresh network namespace: a thread makes it, because unshare moves whoever calls it."""
    made: list[int | OSError] = []

    def make() -> None:
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            made.append(os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _has_ipv6(namespace: Namespace) -> bool:
    """Whether interfaces of the namespace can have IPv6 addresses; containers often switch it off."""
    with namespace.entered():
        try:
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6") as switch:
                return switch.read().strip() == "0"
        except FileNotFoundError:
            return False


def _configure(namespace: Namespace, ipv4: str, ipv6: str | None, servers: Sequence[str]) -> None:
    """Bring up lo with the addresses of `servers`, and eth0 with its address in each family."""
    with namespace.entered(), IPRoute() as netlink:
        [lo], [eth0] = netlink.link_lookup(ifname="lo"), netlink.link_lookup(ifname="eth0")
        if ipv6 is not None:
            netlink.link("set", index=eth0, IFLA_AF_SPEC=_NO_LINK_LOCAL_ADDRESS)
        for index in lo, eth0:
            netlink.link("set", index=index, state="up")
        for server in servers:
            netlink.addr("add", index=lo, address=server, prefixlen=128 if ":" in server else 32)
        netlink.addr("add", index=eth0, address=ipv4, prefixlen=24)
        if ipv6 is not None:
            netlink.addr("add", index=eth0, address=ipv6, prefixlen=64, flags=_IFA_F_NODAD)


def _texts(messages: Any, fields: Sequence[str], attributes: Sequence[str]) -> list[str]:
    """Return netlink messages as sorted lines of their `fields` and of the `attributes` they have."""
    return sorted(
        " ".join(
            [f"{field}={message[field]}" for field in fields]
            + [f"{name}={value}" for name in attributes if (value := message.get_attr(name)) is not None]
        )
        for message in messages
    )


def _kill(pid: int) -> None:
    """Kill a process and wait until it is gone; a pidfd, since it need not be a child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone = poll()
        gone.register(pidfd)
        gone.poll()
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)

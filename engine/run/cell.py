"""What the command's process does before it becomes the command: namespaces, the tun, its network, the resolver, the user.

It runs in a fork of the session and speaks with it over a socket: it sends the tun as soon as there is one, so that the
engine starts meanwhile; says that all stands, or in a sentence why it does not; waits for a byte; and execs. The socket closes
with the exec; the errno of one that fails is sent.
"""

import ctypes
import os
import pwd
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from engine.netconf import NetworkError
from engine.netconf.netlink import open_netlink, proc_sys
from engine.netconf.plan import TABLE_MAIN, Address, Family, Link, LinkState, Route
from engine.processes import ProcessError
from engine.processes.sockets import open_sock_diag
from engine.run.leftovers import namespace_of
from engine.run.resolver import nameservers, private_resolv_conf
from engine.tun import Offload, TunDevice, TunError, open_tun

__all__ = ["GO", "Cell", "Command", "Opened", "Ready", "Refused", "die_with", "enter_and_exec"]

GO = b"g"

# include/uapi/linux/sched.h, include/uapi/linux/mount.h, include/uapi/linux/prctl.h
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

TUN_QUEUE_LENGTH = 1000  # packets, as in engine/netconf/linux.py
IPV6_MTU_MIN = 1280  # bytes, RFC 8200 (5)
ADDR_GEN_MODE_NONE = 1  # include/uapi/linux/if_link.h: nobody on the tun could answer a link-local address
RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_SERVERS = Path("/run/systemd/resolve/resolv.conf")
"""The servers behind systemd-resolved's stub (systemd-resolved.service(8), /etc/resolv.conf)."""
LOCAL_RESOLVERS = ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/var/run/nscd/socket")
"""Sockets over which libc would ask a resolver of the machine, in whose network it would answer; glibc then asks by DNS."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How the namespace is to look."""

    mtu: int
    offload: Offload
    addresses: Sequence[str]
    """The tun's, with prefix length."""
    rootless: bool
    """Make a user namespace first, in which this user may do all of it."""
    dns_addresses: Sequence[str]
    """Where the engine answers DNS; may be empty."""
    scratch: Path
    """Directory for the private resolv.conf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to run."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    user: pwd.struct_passwd | None
    """Whom it runs as; None: as we do."""
    signal_mask: set[signal.Signals]
    """Signals that were blocked when the session began."""


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The namespace is there; comes with the descriptor of the tun, and two for its socket table, if there is one."""

    name: str
    mtu: int
    offload: bool
    features: tuple[str, ...]
    namespace: int
    """See leftovers.namespace_of."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Network and resolver are set up."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """There is no cell."""

    reason: str
    not_permitted: bool = False


def enter_and_exec(channel: socket.socket, cell: Cell, command: Command, *, session: int) -> NoReturn:
    """Become `command`. Never returns: the process ends here if it does not go on as the command.

    `session`: the process whose end is to be the command's.
    """
    try:
        tun = _enter(cell)
        opened = Opened(tun.name, tun.mtu, tun.offload, tun.features, namespace_of() or 0)
        tables = _open_tables()
        socket.send_fds(channel, [msgspec.json.encode(opened)], [tun.fd, *(table.fileno() for table in tables)])
        _set_up_network(tun, cell)
        _set_up_resolver(cell)
        tun.close()  # the session has it; here it would keep the interface without carrying anything
        channel.send(msgspec.json.encode(Ready()))
    except (OSError, NetworkError, TunError) as error:
        channel.send(msgspec.json.encode(_refusal(error, cell)))
        os._exit(1)
    if channel.recv(1) != GO:
        os._exit(1)
    try:
        _become(command, session)
        os.execvpe(command.arguments[0], list(command.arguments), dict(command.environment))
    except OSError as error:
        channel.send(str(error.errno).encode())
    os._exit(1)


def _refusal(error: Exception, cell: Cell) -> Refused:
    if isinstance(error, NetworkError | TunError):
        return Refused(str(error).rstrip("."), error.not_permitted)
    assert isinstance(error, OSError)
    if cell.rootless and isinstance(error, PermissionError):
        return Refused(
            "this machine lets ordinary users make no namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): run it with sudo",
            not_permitted=True,
        )
    return Refused(f"the namespace cannot be made: {error.strerror}", isinstance(error, PermissionError))


def _enter(cell: Cell) -> TunDevice:
    if cell.rootless:
        _enter_user_namespace()
    _call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    # What is mounted from here on is seen by the command alone.
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    return open_tun(mtu=cell.mtu, offload=cell.offload)


def _open_tables() -> list[socket.socket]:
    """Open what tells the owners of the command's sockets: only in here can it be had."""
    try:
        return [open_sock_diag(), open_sock_diag()]
    except ProcessError:
        return []


def _enter_user_namespace() -> None:
    """Become the owner of a user namespace (user_namespaces(7)) in which nobody but this user and group exists."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _set_up_network(tun: TunDevice, cell: Cell) -> None:
    """Bring lo and the tun up, with addresses, and the default routes into the tun. Raises NetworkError."""
    with open_netlink(-1) as netlink:
        loopback, index = netlink.interface_index("lo"), netlink.interface_index(tun.name)
        assert loopback is not None and index is not None, "both are there from the beginning"
        before = netlink.link_state(loopback)
        netlink.make(Link(before=before, after=msgspec.structs.replace(before, up=True)), loopback)
        before = netlink.link_state(index)
        after = LinkState(mtu=tun.mtu, queue_length=TUN_QUEUE_LENGTH, up=True, addr_gen_mode=ADDR_GEN_MODE_NONE)
        netlink.make(Link(before=before, after=after), index)
        for address in cell.addresses:
            family: Family = 6 if ":" in address else 4
            if family == 6 and not _has_ipv6(tun):
                continue
            everything = "0.0.0.0/0" if family == 4 else "::/0"
            netlink.make(Address(family=family, address=address), index)
            netlink.make(Route(family=family, destination=everything, table=TABLE_MAIN), index)
    try:  # as systemd does on the machine itself: ping needs no privilege
        proc_sys("net/ipv4/ping_group_range").write_text("0 2147483647")
    except OSError:
        pass


def _has_ipv6(tun: TunDevice) -> bool:
    try:
        disabled = proc_sys(f"net/ipv6/conf/{tun.name}/disable_ipv6").read_text().strip() != "0"
    except FileNotFoundError:  # a kernel without IPv6
        return False
    return not disabled and tun.mtu >= IPV6_MTU_MIN


def _set_up_resolver(cell: Cell) -> None:
    """Cover resolv.conf by one that works here, if need be, and the sockets of the machine's own resolvers."""
    text = _read(RESOLV_CONF)
    private = private_resolv_conf(text, cell.dns_addresses, nameservers(_read(RESOLVED_SERVERS)))
    if private is not None:
        file = cell.scratch / "resolv.conf"
        file.write_text(private)
        file.chmod(0o644)
        _cover(RESOLV_CONF, file)
    for path in LOCAL_RESOLVERS:
        _cover(Path(path), Path("/dev/null"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cover(path: Path, by: Path) -> None:
    if path.exists():
        _call("mount", os.fsencode(by), os.fsencode(path.resolve()), None, MS_BIND, None)


def _become(command: Command, session: int) -> None:
    """Give up what the command is not to have, and take care that it does not outlive the session."""
    if command.user is not None:
        os.initgroups(command.user.pw_name, command.user.pw_gid)
        os.setresgid(command.user.pw_gid, command.user.pw_gid, command.user.pw_gid)
        os.setresuid(command.user.pw_uid, command.user.pw_uid, command.user.pw_uid)
    for number in signal.SIGPIPE, signal.SIGXFSZ:  # ignored by Python; ignored signals stay so in the command
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, command.signal_mask)
    die_with(session, signal.SIGKILL)  # after setresuid, which clears it


def die_with(parent: int, number: signal.Signals) -> None:
    """Be sent a signal when the parent ends, however it does. Raises OSError."""
    _call("prctl", PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _call(name: str, *arguments: object) -> None:
    """Call a function of libc that returns 0. Raises OSError."""
    converted = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(_libc, name)(*converted) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)

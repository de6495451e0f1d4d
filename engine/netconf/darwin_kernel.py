"""Makes and reverts one change of a Mac's network: routing socket, ioctl, networksetup."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from engine.darwin import system
from engine.darwin.gateway import DefaultRoute, default_route
from engine.darwin.interface import (
    SIOCAIFADDR,
    SIOCAIFADDR_IN6,
    SIOCDIFADDR,
    SIOCDIFADDR_IN6,
    SIOCSIFMTU,
    encode_inet6_alias,
    encode_inet6_removal,
    encode_inet_alias,
    encode_inet_removal,
    encode_mtu,
)
from engine.darwin.name_servers import (
    FLUSH,
    SHOW_DNS,
    get_servers,
    list_services,
    parse_resolvers,
    parse_servers,
    parse_services,
    set_servers,
)
from engine.darwin.route import (
    RTF_WASCLONED,
    RTM_ADD,
    RTM_DELETE,
    RTM_GET,
    Gateway,
    Message,
    encode_default_query,
    encode_query,
    encode_route,
    parse_messages,
)
from engine.darwin.sockaddr import AF_INET, AF_INET6, AF_ROUTE, LinkAddress
from engine.netconf import NetworkError
from engine.netconf.darwin_plan import DarwinChange, HostRoute, NameServers, TunAddress, TunRoute
from engine.netconf.plan import Family

__all__ = ["DarwinKernel", "boot_session", "find_default_route", "open_kernel"]

CTL_NET, NET_RT_DUMP = 4, 1  # sys/sysctl.h, sys/socket.h
MESSAGE_MAX = 2048  # bytes of one routing message
ANSWER_TIMEOUT = 1.0  # seconds; the kernel answers within the write itself
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENXIO, errno.EADDRNOTAVAIL)
"""How the kernel says that the thing to remove does not exist."""
_NOWHERE: dict[Family, str] = {4: "127.0.0.1", 6: "::1"}


def boot_session() -> str:
    """Return what tells this run of the machine from all others."""
    return system.sysctl_by_name("kern.bootsessionuuid").rstrip(b"\0").decode()


def find_default_route(version: Family, *, own_index: int = 0) -> DefaultRoute | None:
    """Return the machine's own default route, out of a dump of the table. Needs no privilege. Raises OSError."""
    dump = system.sysctl(CTL_NET, AF_ROUTE, 0, AF_INET if version == 4 else AF_INET6, NET_RT_DUMP, 0)
    return default_route(parse_messages(dump), version, system.interface_name, own_index=own_index)


@contextmanager
def open_kernel() -> Iterator["DarwinKernel"]:
    """Give a connection to the kernel. Raises NetworkError when there is none to be had."""
    with ExitStack() as sockets:
        try:
            routes = sockets.enter_context(system.route_socket())
            inet, inet6 = (sockets.enter_context(system.inet_socket(version)) for version in (4, 6))
        except OSError as error:
            raise NetworkError(f"The kernel gives no socket: {error.strerror}.") from error
        yield DarwinKernel(routes, inet, inet6)


class DarwinKernel:
    """Methods raise NetworkError when the kernel, or networksetup, refuses; then nothing is changed."""

    def __init__(self, routes: socket.socket, inet: socket.socket, inet6: socket.socket) -> None:
        routes.settimeout(ANSWER_TIMEOUT)
        self._routes = routes
        self._inet = inet
        self._inet6 = inet6
        self._sequence = 0

    def interface_index(self, name: str) -> int | None:
        """Return the index of an interface, None when there is none of this name."""
        try:
            return system.interface_index(name)
        except OSError:
            return None

    def set_mtu(self, interface: str, mtu: int) -> None:
        """Set the MTU of the tun, which takes it along when it goes."""
        try:
            system.ioctl(self._inet, SIOCSIFMTU, encode_mtu(interface, mtu))
        except OSError as error:
            raise _explained(f"The MTU of {interface} cannot be set to {mtu}", error) from error

    # what there is

    def default_route(self, version: Family, own_index: int) -> DefaultRoute | None:
        """Return the machine's own default route: from a dump, else by asking for it."""
        try:
            found = find_default_route(version, own_index=own_index)
        except OSError as error:
            raise _explained("The routing table cannot be read", error) from error
        if found is not None:
            return found
        answer = self._ask(encode_default_query(version, sequence=self._next_sequence()))
        if answer is None or answer.interface is None or answer.index == own_index or answer.destination is None:
            return None
        if answer.destination.prefixlen or answer.gateway is None:
            return None
        link = answer.interface
        hop: Gateway = link if isinstance(answer.gateway, LinkAddress) else str(answer.gateway)
        return DefaultRoute(link.index, link.name, hop)

    def host_route(self, address: str, own_index: int) -> HostRoute | None:
        """Return what lets a host leave beside the tun; None when it does already, by a route of its own (a LAN's)."""
        ip = ip_address(address)
        version: Family = 4 if ip.version == 4 else 6
        default = self.default_route(version, own_index)
        answer = self._ask(encode_query(address, sequence=self._next_sequence()))
        if answer is not None and not _is_default(answer, default, own_index):
            return None
        return as_host_route(address, version, default)

    def local_resolvers(self, own_index: int) -> list[str]:
        """Return the name servers that the machine asks past the tun."""
        try:
            resolvers = parse_resolvers(system.run(SHOW_DNS))
        except OSError:
            return []
        servers = [server for one in resolvers if not one.domain and not one.scoped for server in one.servers]
        return [server for server in dict.fromkeys(servers) if self._is_past_tun(server, own_index)]

    def _is_past_tun(self, server: str, own_index: int) -> bool:
        answer = self._ask(encode_query(server, sequence=self._next_sequence()))
        return answer is not None and answer.index != own_index and not ip_address(server.partition("%")[0]).is_loopback

    def _ask(self, query: bytes) -> Message | None:
        """Return the kernel's answer; None when there is no route."""
        try:
            system.send_route(self._routes, query)
            while True:
                for answer in parse_messages(self._routes.recv(MESSAGE_MAX)):
                    if (answer.kind, answer.sequence, answer.pid) == (RTM_GET, self._sequence, os.getpid()):
                        return answer if not answer.errno else None
        except OSError as error:
            if error.errno in _GONE or isinstance(error, TimeoutError):
                return None
            raise _explained("The kernel cannot be asked for a route", error) from error

    # changes

    def make(self, change: DarwinChange, interface: str) -> None:
        """Make one change. A route that is there already is a relic of ours, and makes room."""
        try:
            self._make(change, interface)
        except OSError as error:
            raise _explained(f"{_describe(change)} cannot be made", error) from error

    def make_if_missing(self, change: TunAddress | TunRoute | HostRoute, interface: str) -> bool:
        """Make a change unless it stands; return whether it was missing."""
        try:
            if isinstance(change, TunAddress):
                self._add_address(change, interface)
                return False  # the kernel does not say whether it was there
            self._send(RTM_ADD, change)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise _explained(f"{_describe(change)} cannot be made", error) from error
        return True

    def revert(self, change: DarwinChange, interface: str | None) -> None:
        """Take back one change as far as it is still there and still ours; `interface` is None when the tun is gone."""
        try:
            match change:
                case NameServers():
                    self._restore_servers(change)
                case HostRoute():
                    self._send(RTM_DELETE, change)
                case TunRoute() if interface is not None:  # otherwise it went with the tun, and one like it is not ours
                    self._send(RTM_DELETE, change)
                case TunAddress() if interface is not None:
                    self._remove_address(change, interface)
        except OSError as error:
            if error.errno not in _GONE:
                raise _explained(f"{_describe(change)} cannot be undone", error) from error

    def name_servers(self, servers: tuple[str, ...]) -> list[NameServers]:
        """Return what gives every network service these servers."""
        try:
            services = parse_services(system.run(list_services()))
            return [
                NameServers(service=service, before=parse_servers(system.run(get_servers(service))), after=servers)
                for service in services
            ]
        except OSError as error:
            raise _explained("The network services cannot be listed", error) from error

    def flush_names(self) -> None:
        """Empty the caches of names. Failing costs the user a minute of stale answers, so nothing is said of it."""
        for command in FLUSH:
            try:
                system.run(command)
            except OSError:
                continue

    def _make(self, change: DarwinChange, interface: str) -> None:
        match change:
            case TunAddress():
                self._add_address(change, interface)
            case TunRoute() | HostRoute():
                try:
                    self._send(RTM_ADD, change)
                except FileExistsError:
                    self._send(RTM_DELETE, change)
                    self._send(RTM_ADD, change)
            case NameServers():
                system.run(set_servers(change.service, change.after))

    def _send(self, kind: int, route: TunRoute | HostRoute) -> None:
        sequence = self._next_sequence()
        if isinstance(route, TunRoute):
            message = encode_route(kind, route.destination, route.gateway, sequence=sequence)
        else:
            ends = route.interface is None
            hop: Gateway = route.gateway or LinkAddress(route.index, route.interface or "")
            if ends:
                hop = _NOWHERE[route.family]
            message = encode_route(kind, route.address, hop, blackhole=ends, sequence=sequence)
        system.send_route(self._routes, message)

    def _add_address(self, change: TunAddress, interface: str) -> None:
        if change.family == 4:
            system.ioctl(self._inet, SIOCAIFADDR, encode_inet_alias(interface, change.address))
        else:
            system.ioctl(self._inet6, SIOCAIFADDR_IN6, encode_inet6_alias(interface, change.address))

    def _remove_address(self, change: TunAddress, interface: str) -> None:
        if change.family == 4:
            system.ioctl(self._inet, SIOCDIFADDR, encode_inet_removal(interface, change.address))
        else:
            system.ioctl(self._inet6, SIOCDIFADDR_IN6, encode_inet6_removal(interface, change.address))

    def _restore_servers(self, change: NameServers) -> None:
        """Unless the user, or the system, has meanwhile given others."""
        if parse_servers(system.run(get_servers(change.service))) == change.after:
            system.run(set_servers(change.service, change.before))

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence


def as_host_route(address: str, family: Family, default: DefaultRoute | None) -> HostRoute:
    """Return the route that takes a host the way of the default route; without one, nowhere."""
    if default is None:
        return HostRoute(family=family, address=address, gateway=None, interface=None, index=0)
    gateway = default.gateway if isinstance(default.gateway, str) else None
    return HostRoute(family=family, address=address, gateway=gateway, interface=default.name, index=default.index)


def _is_default(answer: Message, default: DefaultRoute | None, own_index: int) -> bool:
    """Whether the answer is the default route, one that the kernel has cloned from it for a single host, or the tun's."""
    if answer.index == own_index or answer.destination is None or not answer.destination.prefixlen:
        return True
    return bool(answer.flags & RTF_WASCLONED) and default is not None and str(answer.gateway) == default.gateway


def _describe(change: DarwinChange) -> str:
    match change:
        case TunAddress():
            return f"The address {change.address}"
        case TunRoute():
            return f"The route to {change.destination}"
        case HostRoute():
            return f"The route to the host {change.address}"
        case NameServers():
            return f"The DNS setting of {change.service}"


def _explained(what: str, error: OSError) -> NetworkError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return NetworkError(f"{what}: it needs root. Try again with sudo.", not_permitted=True)
    return NetworkError(f"{what}: {reason}.")

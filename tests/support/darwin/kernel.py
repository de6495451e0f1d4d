"""A kernel as macOS has it, for what the engine asks of one: utun, addresses, routes, name servers, tables of sockets.

It answers engine/darwin/system.py, keeps a log of every call with its bytes, and refuses what xnu refuses: a message whose
length is wrong, a route that is there, a gateway that no interface reaches, an IPv4 address without a far end. A utun lives
as long as somebody holds its descriptor, which is one end of a socket pair that keeps packet boundaries; `wire` is the other.
"""

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

from engine.darwin import interface as io
from engine.darwin.route import (
    RTF_HOST,
    RTF_IFSCOPE,
    RTM_ADD,
    RTM_DELETE,
    RTM_GET,
    RTM_IFINFO,
    Message,
    parse_messages,
)
from engine.darwin.sockaddr import LinkAddress
from tests.support.darwin.messages import link, pcb_table, route_message, sin, sin6, trimmed_mask

__all__ = ["BOOT_SESSION", "Interface", "Kernel", "Route"]

BOOT_SESSION = "5A7B9C2E-0000-4000-8000-000000000001"
CONTROL_ID = 5
UP = 0x8051  # UP, POINTOPOINT, RUNNING, MULTICAST
Network = IPv4Network | IPv6Network


@dataclass
class Interface:
    index: int
    mtu: int = 1500
    addresses: list[str] = field(default_factory=list)
    """With prefix length."""


@dataclass
class Route:
    destination: Network
    gateway: str | LinkAddress
    interface: str
    flags: int
    scope: int = 0


@dataclass
class Control:
    """A socket of a kernel control, and the kernel's end of it."""

    wire: socket.socket
    name: str = ""
    pending: int = 1


class Kernel:
    """Methods named as those of engine/darwin/system.py take handles in the place of sockets, and give (handle, descriptor)."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        """Calls that ask for a change: name, then arguments; bytes as hex."""
        self.interfaces = {
            "lo0": Interface(1, 16384, ["127.0.0.1/8", "::1/128"]),
            "en0": Interface(4, 1500, ["192.168.1.50/24", "2001:db8:1::50/64"]),
            "en1": Interface(6, 1500, ["10.0.0.50/24"]),
            **{f"utun{n}": Interface(10 + n, 1380) for n in range(4)},
        }
        self.routes: list[Route] = [
            Route(ip_network("127.0.0.0/8"), "127.0.0.1", "lo0", 0x1),
            Route(ip_network("192.168.1.0/24"), LinkAddress(4, "en0"), "en0", 0x101),
            Route(ip_network("10.0.0.0/24"), LinkAddress(6, "en1"), "en1", 0x101),
            Route(ip_network("2001:db8:1::/64"), LinkAddress(4, "en0"), "en0", 0x101),
        ]
        self.set_default("192.168.1.1", "en0")
        self.set_default("fe80::1%4", "en0")
        self.services = {"Wi-Fi": ("en0", ()), "USB LAN": ("en7", ("192.0.2.53",))}
        """Name -> device, DNS servers set by hand."""
        self.resolver = "192.168.1.1"
        self.tables = {f"net.inet.{protocol}.pcblist_n": pcb_table() for protocol in ("tcp", "udp")}
        """Of sockets, by name of their sysctl."""
        self.processes: dict[int, tuple[int, int, str, tuple[str, ...]]] = {}
        """Process id -> parent, user, path, arguments."""
        self.refuse: dict[str, int] = {}
        """Name of a call -> errno that it fails with."""
        self.controls: dict[int, Control] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._inet: dict[int, int] = {}  # handle -> version
        self._next_handle = 1
        self._next_index = 15
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the kernel's ends of all sockets."""
        for end in (*self._listeners.values(), *(control.wire for control in self.controls.values())):
            end.close()

    # for tests

    def set_default(self, gateway: str, interface: str) -> None:
        """The system's own default route, as configd sets it. Listeners are told."""
        everything = ip_network("::/0" if ":" in gateway else "0.0.0.0/0")
        self.remove_default(everything.version)
        route = Route(everything, gateway, interface, 0x803)
        self.routes.append(route)
        self._announce(RTM_ADD, route, 1)

    def remove_default(self, version: int) -> None:
        """The network is gone."""
        for route in [
            one for one in self.routes if one.destination.version == version and not one.destination.prefixlen
        ]:
            self.routes.remove(route)
            self._announce(RTM_DELETE, route, 1)

    def wire(self, name: str) -> socket.socket:
        """The kernel's end of a utun."""
        return next(control.wire for control in self.controls.values() if control.name == name)

    def route_to(self, destination: str) -> Route | None:
        """The route with exactly this destination."""
        return next((route for route in self.routes if route.destination == ip_network(destination)), None)

    def reap(self) -> None:
        """Take away the tuns that nobody holds any more, with their addresses and routes."""
        with self._lock:
            for handle, control in list(self.controls.items()):
                poll = select.poll()
                poll.register(control.wire, 0)
                if poll.poll(0):
                    control.wire.close()
                    del self.controls[handle]
                    if control.name:
                        self._destroy(control.name)

    def _destroy(self, name: str) -> None:
        interface = self.interfaces.pop(name)
        for route in [route for route in self.routes if route.interface == name]:
            self.routes.remove(route)
        down = struct.pack("=HBBiiH", 112, 5, RTM_IFINFO, 0, UP & ~1, interface.index) + bytes(98)
        self._tell(down)

    def leftovers(self) -> dict[str, object]:
        """What an engine that has stopped must not leave: compare with that of a new kernel."""
        self.reap()
        return {
            "interfaces": sorted(self.interfaces),
            "routes": sorted((str(one.destination), str(one.gateway), one.interface) for one in self.routes),
            "services": dict(self.services),
        }

    # sockets

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def control_socket(self) -> tuple[int, int]:
        self._check("control_socket")
        wire, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wire.setblocking(False)
        handle = self._new_handle()
        self.controls[handle] = Control(wire)
        return handle, ours.detach()

    def inet_socket(self, version: int) -> tuple[int, int]:
        handle = self._new_handle()
        self._inet[handle] = version
        return handle, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()

    def route_socket(self) -> tuple[int, int]:
        kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kernel.setblocking(False)
        handle = self._new_handle()
        self._listeners[handle] = kernel
        return handle, ours.detach()

    monitor_socket = route_socket

    # utun

    def connect_control(self, handle: int, control_id: int, unit: int) -> None:
        self._note("connect_control", io.encode_control_address(control_id, unit))
        self._check("connect_control")
        if control_id != CONTROL_ID:
            raise OSError(errno.ENOENT, "no such control")
        self.reap()
        taken = {int(name[4:]) for name in self.interfaces if name.startswith("utun")}
        number = unit - 1 if unit else next(n for n in range(len(taken) + 1) if n not in taken)
        if number in taken:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        control = self.controls[handle]
        control.name = f"utun{number}"
        self.interfaces[control.name] = Interface(self._next_index)
        self._next_index += 1

    def get_option(self, handle: int, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (2, 2), "UTUN_OPT_IFNAME"
        name = self.controls[handle].name.encode() + b"\0"
        if name == b"\0":
            raise OSError(errno.EINVAL, "not connected")
        if size < len(name):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return name

    def set_option(self, handle: int, level: int, option: int, value: bytes) -> None:
        self._note("set_option", f"{level},{option}", value)
        self._check("set_option")
        assert (level, option, len(value)) == (2, 16, 4), "UTUN_OPT_MAX_PENDING_PACKETS"
        self.controls[handle].pending = int.from_bytes(value, "little")

    def ioctl(self, handle: int, request: int, argument: bytes) -> bytes:
        self._note("ioctl", f"{request:#010x}", argument)
        self._check("ioctl")
        if request >> 16 & 0x1FFF != len(argument):
            raise OSError(errno.EINVAL, "the request says another length")
        if request == io.CTLIOCGINFO:
            if argument[4:].rstrip(b"\0") != b"com.apple.net.utun_control":
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return struct.pack("=I", CONTROL_ID) + argument[4:]
        name = argument[:16].rstrip(b"\0").decode()
        if name not in self.interfaces:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        interface = self.interfaces[name]
        version = self._inet[handle]
        if request == io.SIOCSIFMTU:
            (mtu,) = struct.unpack_from("=i", argument, 16)
            if not 72 <= mtu <= 65535:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            interface.mtu = mtu
        elif request == io.SIOCAIFADDR and version == 4:
            self._add_inet(name, interface, argument)
        elif request == io.SIOCAIFADDR_IN6 and version == 6:
            self._add_inet6(name, interface, argument)
        elif request in (io.SIOCDIFADDR, io.SIOCDIFADDR_IN6):
            self._remove_address(interface, argument[20:24] if version == 4 else argument[24:40])
        else:
            raise OSError(errno.EOPNOTSUPP, "on a socket of another family")
        return argument

    def _add_inet(self, name: str, interface: Interface, argument: bytes) -> None:
        own, far, mask = argument[16:32], argument[32:48], argument[48:64]
        assert own[:2] == far[:2] == mask[:2] == b"\x10\x02", "three sockaddr_in"
        if not any(far[4:8]):
            raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        length = int.from_bytes(mask[4:8], "big").bit_count()
        interface.addresses.append(f"{ip_address(own[4:8])}/{length}")
        # Of a point-to-point interface only the far end gets a route, never the prefix.
        self._put(Route(ip_network(far[4:8]), str(ip_address(own[4:8])), name, 0x5))

    def _add_inet6(self, name: str, interface: Interface, argument: bytes) -> None:
        own, far, mask = argument[16:44], argument[44:72], argument[72:100]
        assert own[:2] == mask[:2] == b"\x1c\x1e", "sockaddr_in6"
        length = int.from_bytes(mask[8:24], "big").bit_count()
        if length == 0 or (any(far) and length != 128):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        preferred, valid = struct.unpack_from("=II", argument, 120)[::-1]
        if preferred > valid:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        address = f"{ip_address(own[8:24])}/{length}"
        interface.addresses.append(address)
        self._put(Route(ip_interface(address).network, LinkAddress(interface.index, name), name, 0x101))

    def _remove_address(self, interface: Interface, packed: bytes) -> None:
        for address in interface.addresses:
            if ip_interface(address).packed == packed:
                interface.addresses.remove(address)
                return
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def _put(self, route: Route) -> None:
        if not any((one.destination, one.scope) == (route.destination, route.scope) for one in self.routes):
            self.routes.append(route)

    def bind_to_interface(self, family: int, index: int) -> None:
        """IP_BOUND_IF and IPV6_BOUND_IF of a socket that goes out."""
        self._note("bind_to_interface", f"{family},{index}")
        if not any(one.index == index for one in self.interfaces.values()):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def interface_index(self, name: str) -> int:
        self.reap()
        if name not in self.interfaces:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return self.interfaces[name].index

    def interface_name(self, index: int) -> str:
        for name, interface in self.interfaces.items():
            if interface.index == index:
                return name
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    # routes

    def send_route(self, handle: int, data: bytes, pid: int) -> None:
        if len(data) < 92 or int.from_bytes(data[:2], "little") != len(data):
            raise OSError(errno.EINVAL, "length")
        if data[2] != 5:
            raise OSError(errno.EPROTONOSUPPORT, "version")
        (message,) = parse_messages(data)
        if message.kind != RTM_GET:
            self._note("send_route", data)
            self._check("send_route")
        if message.destination is None:
            raise OSError(errno.EINVAL, "destination")
        with self._lock:
            if message.kind == RTM_ADD:
                self._announce(RTM_ADD, self._add_route(message), pid)
            elif message.kind == RTM_DELETE:
                self._announce(RTM_DELETE, self._delete_route(message), pid)
            elif message.kind == RTM_GET:
                exact = bool(struct.unpack_from("=i", data, 12)[0] & 4)
                self._answer(handle, message, pid, exact)
            else:
                raise OSError(errno.EOPNOTSUPP, "kind")

    def _key(self, message: Message) -> tuple[Network, int]:
        assert message.destination is not None
        return message.destination, message.index if message.flags & RTF_IFSCOPE else 0

    def _find(self, key: tuple[Network, int]) -> Route | None:
        return next((route for route in self.routes if (route.destination, route.scope) == key), None)

    def _add_route(self, message: Message) -> Route:
        if message.gateway is None:
            raise OSError(errno.EINVAL, "gateway")
        destination, scope = key = self._key(message)
        if self._find(key) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        hop = message.gateway
        gateway = hop if isinstance(hop, LinkAddress) else str(hop)
        route = Route(destination, gateway, self._reached_by(gateway, destination.version), message.flags | 0x40, scope)
        self.routes.append(route)
        return route

    def _reached_by(self, gateway: str | LinkAddress, version: int) -> str:
        """The interface of a gateway: whose own far end it is, or on whose prefix it lies."""
        for name, interface in self.interfaces.items():
            for address in map(ip_interface, interface.addresses):
                if address.version != version:
                    continue
                if isinstance(gateway, LinkAddress):
                    if gateway.index == interface.index:
                        return name
                elif "%" in gateway:
                    if int(gateway.partition("%")[2]) == interface.index:
                        return name
                elif ip_address(gateway) in (
                    address.network if name.startswith(("en", "lo")) else ip_network(address.ip)
                ):
                    return name
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def _delete_route(self, message: Message) -> Route:
        route = self._find(self._key(message))
        if route is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self.routes.remove(route)
        return route

    def _answer(self, handle: int, message: Message, pid: int, exact: bool) -> None:
        assert message.destination is not None
        covering = [route for route in self.routes if not route.scope and _covers(route, message.destination)]
        if exact:
            covering = [route for route in covering if not route.destination.prefixlen]
        if not covering:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        best = max(covering, key=lambda route: route.destination.prefixlen)
        answer = self._encode(RTM_GET, best, pid, message.sequence, with_interface=True)
        self._listeners[handle].send(answer)

    def _announce(self, kind: int, route: Route, pid: int) -> None:
        self._tell(self._encode(kind, route, pid, 0))

    def _tell(self, data: bytes) -> None:
        for handle, listener in list(getattr(self, "_listeners", {}).items()):
            try:
                listener.send(data)
            except BlockingIOError:
                pass  # it does not read: lost, as with the real one
            except OSError:
                listener.close()
                del self._listeners[handle]

    def _encode(self, kind: int, route: Route, pid: int, sequence: int, *, with_interface: bool = False) -> bytes:
        index = self.interfaces[route.interface].index
        network = route.destination
        is_host = network.prefixlen == network.max_prefixlen
        if isinstance(route.gateway, LinkAddress):
            hop = link(index, route.interface)
        else:
            text, _, scope = route.gateway.partition("%")
            hop = sin(text) if ":" not in text else sin6(text, embedded_scope=int(scope or 0))
        address = str(network.network_address)
        return route_message(
            kind,
            index=index,
            flags=route.flags | (RTF_HOST if is_host else 0),
            dst=sin(address) if network.version == 4 else sin6(address),
            gateway=hop,
            mask=None if is_host else trimmed_mask(str(network)),
            interface=link(index, route.interface) if with_interface else None,
            pid=pid,
            sequence=sequence,
        )

    # tables

    def sysctl(self, *name: int) -> bytes:
        self.reap()
        if name[:2] == (1, 49):
            _, _, path, arguments = self._process(name[2])
            words = [path, *[""] * 7, *arguments, "HOME=/Users/me", ""]
            return struct.pack("=i", len(arguments)) + "\0".join(words).encode()
        assert (name[:3], name[4:]) == ((4, 17, 0), (1, 0)), "NET_RT_DUMP"
        version = {2: 4, 30: 6}[name[3]]
        return b"".join(
            self._encode(RTM_GET, route, 0, 0) for route in self.routes if route.destination.version == version
        )

    def sysctl_by_name(self, name: str) -> bytes:
        if name == "kern.bootsessionuuid":
            return BOOT_SESSION.encode() + b"\0"
        if name == "kern.maxfilesperproc":
            return struct.pack("=i", 4096)
        return self.tables[name]

    def _process(self, pid: int) -> tuple[int, int, str, tuple[str, ...]]:
        if pid not in self.processes:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return self.processes[pid]

    def process_path(self, pid: int) -> str:
        return self._process(pid)[2]

    def process_info(self, pid: int, flavor: int, size: int) -> bytes:
        assert (flavor, size) == (13, 64), "PROC_PIDT_SHORTBSDINFO"
        parent, uid, path, _ = self._process(pid)
        return struct.pack("=4I16s8I", pid, parent, pid, 2, path.encode()[-15:], 0, uid, 20, uid, 20, uid, 20, 0)

    def process_ids(self, kind: int, of: int) -> bytes:
        assert kind == 6, "PROC_PPID_ONLY"
        children = [pid for pid, (parent, *_) in self.processes.items() if parent == of]
        return struct.pack(f"={len(children)}i", *children)

    # programs

    def run(self, command: Sequence[str]) -> str:
        program, *arguments = command
        match program, arguments:
            case "/usr/sbin/networksetup", ["-listnetworkserviceorder"]:
                lines = [
                    f"({place}) {name}\n(Hardware Port: {name}, Device: {device})\n"
                    for place, (name, (device, _)) in enumerate(self.services.items(), start=1)
                ]
                return "\n".join(("An asterisk (*) denotes that a network service is disabled.", *lines))
            case "/usr/sbin/networksetup", ["-getdnsservers", service]:
                servers = self.services[service][1]
                return "\n".join(servers) or f"There aren't any DNS Servers set on {service}."
            case "/usr/sbin/networksetup", ["-setdnsservers", service, *servers]:
                self._note("run", *command)
                self._check("run")
                self.services[service] = (self.services[service][0], () if servers == ["Empty"] else tuple(servers))
            case "/usr/sbin/scutil", ["--dns"]:
                return f"DNS configuration\n\nresolver #1\n  nameserver[0] : {self.resolver}\n  if_index : 4 (en0)\n"
            case ("/usr/bin/dscacheutil", ["-flushcache"]) | ("/usr/bin/killall", ["-HUP", "mDNSResponder"]):
                self._note("run", *command)
            case _:
                raise AssertionError(f"nobody runs {command}")
        return ""

    def _note(self, call: str, *arguments: str | bytes) -> None:
        self.log.append(
            (call, *(argument.hex() if isinstance(argument, bytes) else argument for argument in arguments))
        )

    def _check(self, call: str) -> None:
        if call in self.refuse:
            code = self.refuse[call]
            raise OSError(code, os.strerror(code))


def _covers(route: Route, network: Network) -> bool:
    return route.destination.version == network.version and network.subnet_of(route.destination)  # type: ignore[arg-type]

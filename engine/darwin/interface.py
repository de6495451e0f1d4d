"""ioctl numbers and structs by which a utun is made and gets its MTU and addresses. Pure.

Sources: sys/ioccom.h, sys/kern_control.h, net/if.h, net/if_utun.h, netinet6/in6_var.h of xnu.
"""

import struct
from ipaddress import ip_interface
from typing import Final

from engine.darwin.sockaddr import AF_SYSTEM, encode_address

__all__ = [
    "AF_SYS_CONTROL",
    "CTLIOCGINFO",
    "IFNAMSIZ",
    "IN6_IFF_NODAD",
    "IN6_IFF_SECURED",
    "MTU_MAX",
    "MTU_MIN",
    "SIOCAIFADDR",
    "SIOCAIFADDR_IN6",
    "SIOCDIFADDR",
    "SIOCDIFADDR_IN6",
    "SIOCSIFMTU",
    "SYSPROTO_CONTROL",
    "UTUN_CONTROL_NAME",
    "UTUN_OPT_IFNAME",
    "UTUN_OPT_MAX_PENDING_PACKETS",
    "encode_control_address",
    "encode_control_info",
    "encode_inet6_alias",
    "encode_inet6_removal",
    "encode_inet_alias",
    "encode_inet_removal",
    "encode_mtu",
    "parse_control_id",
]

_OUT, _IN, _INOUT = 0x40000000, 0x80000000, 0xC0000000


def _ioc(direction: int, group: str, number: int, length: int) -> int:
    return direction | (length & 0x1FFF) << 16 | ord(group) << 8 | number


CTLIOCGINFO: Final = _ioc(_INOUT, "N", 3, 100)
SIOCSIFMTU: Final = _ioc(_IN, "i", 52, 32)
SIOCAIFADDR: Final = _ioc(_IN, "i", 26, 64)
SIOCDIFADDR: Final = _ioc(_IN, "i", 25, 32)
SIOCAIFADDR_IN6: Final = _ioc(_IN, "i", 26, 128)
SIOCDIFADDR_IN6: Final = _ioc(_IN, "i", 25, 288)

SYSPROTO_CONTROL: Final = 2  # protocol of the socket, and level of its options
AF_SYS_CONTROL: Final = 2
UTUN_CONTROL_NAME: Final = b"com.apple.net.utun_control"
UTUN_OPT_IFNAME: Final = 2
UTUN_OPT_MAX_PENDING_PACKETS: Final = 16
IFNAMSIZ: Final = 16  # bytes, with the terminating zero
MTU_MIN, MTU_MAX = 72, 65535  # IF_MINMTU, IF_MAXMTU; outside the kernel says EINVAL

IN6_IFF_NODAD: Final = 0x20  # nobody else can have the address
IN6_IFF_SECURED: Final = 0x400
ND6_INFINITE_LIFETIME: Final = 0xFFFFFFFF

_CTL_INFO = struct.Struct("=I96s")
_IFREQ_MTU = struct.Struct("=16si12x")
_IFREQ_ADDRESS = struct.Struct("=16s16s")
_IFALIASREQ = struct.Struct("=16s16s16s16s")  # name, address, destination, mask
_IN6_ALIASREQ = struct.Struct(
    "=16s28s28s28siqqII"
)  # name, address, destination, mask, flags, expire, preferred, lifetimes
_IN6_IFREQ_SIZE = 288


def encode_control_info(name: bytes = UTUN_CONTROL_NAME) -> bytes:
    """Return the struct ctl_info that asks for the number of a kernel control."""
    return _CTL_INFO.pack(0, name)


def parse_control_id(control_info: bytes) -> int:
    """Return the number that the kernel has filled in."""
    number: int = _CTL_INFO.unpack(control_info)[0]
    return number


def encode_control_address(control_id: int, unit: int) -> bytes:
    """Return the struct sockaddr_ctl of unit N + 1, which makes utunN; unit 0 is the lowest that is free.

    Python's `connect` builds it from the two numbers; here it is for those who read or check what the kernel is given.
    """
    return struct.pack("=BBHII20x", 32, AF_SYSTEM, AF_SYS_CONTROL, control_id, unit)


def encode_mtu(interface: str, mtu: int) -> bytes:
    """Return the struct ifreq of SIOCSIFMTU."""
    return _IFREQ_MTU.pack(interface.encode(), mtu)


def encode_inet_alias(interface: str, address: str) -> bytes:
    """Return the struct ifaliasreq that gives an IPv4 address with prefix length.

    The far end of the link, without which the kernel says EDESTADDRREQ, is the address itself: so a route by way of it leads
    into this interface.
    """
    own = ip_interface(address)
    end = encode_address(str(own.ip))
    return _IFALIASREQ.pack(interface.encode(), end, end, encode_address(str(own.netmask)))


def encode_inet_removal(interface: str, address: str) -> bytes:
    """Return the struct ifreq that takes an IPv4 address away."""
    return _IFREQ_ADDRESS.pack(interface.encode(), encode_address(str(ip_interface(address).ip)))


def encode_inet6_alias(interface: str, address: str) -> bytes:
    """Return the struct in6_aliasreq that gives an IPv6 address for ever, without looking for duplicates.

    The far end stays unspecified: the kernel says EINVAL to any other unless the prefix is a /128.
    """
    own = ip_interface(address)
    return _IN6_ALIASREQ.pack(
        interface.encode(),
        encode_address(str(own.ip)),
        bytes(28),
        encode_address(str(own.netmask)),
        IN6_IFF_NODAD | IN6_IFF_SECURED,
        0,
        0,
        ND6_INFINITE_LIFETIME,
        ND6_INFINITE_LIFETIME,
    )


def encode_inet6_removal(interface: str, address: str) -> bytes:
    """Return the struct in6_ifreq that takes an IPv6 address away."""
    body = interface.encode().ljust(IFNAMSIZ, b"\0") + encode_address(str(ip_interface(address).ip))
    return body.ljust(_IN6_IFREQ_SIZE, b"\0")

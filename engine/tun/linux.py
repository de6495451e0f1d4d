"""/dev/net/tun. Constants are those of include/uapi/linux/if_tun.h and if.h (Documentation/networking/tuntap.rst)."""

import errno
import os
import struct
from fcntl import ioctl
from typing import Final

from engine.tun import Offload, ReadPacket, TunError
from shared.wire.virtio import HEADER_LEN

__all__ = ["LinuxTun", "open_linux_tun"]

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8

IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFNAMSIZ: Final = 16  # bytes, with the terminating zero

TUN_F_CSUM: Final = 0x01  # without it the kernel refuses all the others
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08  # needs TSO4 or TSO6
TUN_F_USO4: Final = 0x20  # Linux 6.2; only together with USO6
TUN_F_USO6: Final = 0x40

_IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, flags, padding to 40 bytes

_FEATURES: Final = {
    "csum": TUN_F_CSUM,
    "tso4": TUN_F_TSO4,
    "tso6": TUN_F_TSO6,
    "tso_ecn": TUN_F_TSO_ECN,
    "uso4": TUN_F_USO4,
    "uso6": TUN_F_USO6,
}

_TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
_LADDER: Final = (
    _TSO | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,
    _TSO | TUN_F_TSO_ECN,
    _TSO,
    TUN_F_CSUM | TUN_F_TSO4,
    TUN_F_CSUM,
    0,
)
"""What is asked of TUNSETOFFLOAD, best first; after the last step comes a tun without virtio header."""

_FIRST_STEP: Final[dict[Offload, int]] = {"auto": 0, "uso": 0, "tso": 1, "csum": 4, "none": 5, "no-header": 6}


class LinuxTun:
    """See engine.tun.TunDevice."""

    def __init__(self, fd: int, name: str, mtu: int, *, offload: bool, features: tuple[str, ...]) -> None:
        self.fd = fd
        self.name = name
        self.mtu = mtu
        self.offload = offload
        self.features = features
        self.header_len = HEADER_LEN if offload else 0
        self.read: ReadPacket = os.readv

    def kept(self) -> int:
        """See TunDevice."""
        return 0

    def close(self) -> None:
        """Close the descriptor; the interface goes with the last one, unless it was made persistent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_linux_tun(name: str, *, mtu: int, offload: Offload) -> LinuxTun:
    """See engine.tun.open_tun."""
    if len(name.encode()) >= IFNAMSIZ:
        raise TunError(f"The interface name {name!r} is too long: at most {IFNAMSIZ - 1} bytes.")
    steps = _LADDER[_FIRST_STEP[offload] :]
    if steps:
        try:
            return _open_with_header(name, mtu, steps)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _explained(error, name) from error
            # This tun knows no virtio header (gVisor's does not), or the interface is no tun: the next attempt tells.
    try:
        return _open_bare(name, mtu)
    except OSError as error:
        raise _explained(error, name) from error


def _open_with_header(name: str, mtu: int, steps: tuple[int, ...]) -> LinuxTun:
    fd = _open_clone_device()
    try:
        actual_name = _attach(fd, name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
        # A persistent tun remembers the size of its last owner.
        ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_LEN))
        flags = _grant_offload(fd, steps)
    except BaseException:
        os.close(fd)
        raise
    features = tuple(feature for feature, bit in _FEATURES.items() if flags & bit)
    return LinuxTun(fd, actual_name, mtu, offload=True, features=features)


def _open_bare(name: str, mtu: int) -> LinuxTun:
    fd = _open_clone_device()
    try:
        actual_name = _attach(fd, name, IFF_TUN | IFF_NO_PI)
    except BaseException:
        os.close(fd)
        raise
    return LinuxTun(fd, actual_name, mtu, offload=False, features=())


def _open_clone_device() -> int:
    return os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _attach(fd: int, name: str, flags: int) -> str:
    """Create the interface, or take over a persistent one; return the name that it got."""
    request = _IFREQ.pack((name or "tun%d").encode(), flags)
    reply: bytes = ioctl(fd, TUNSETIFF, request)
    raw_name: bytes = _IFREQ.unpack(reply)[0]
    return raw_name.rstrip(b"\0").decode()


def _grant_offload(fd: int, steps: tuple[int, ...]) -> int:
    """Return the first of `steps` that the kernel accepts. Raises OSError (EINVAL) when it accepts none."""
    for flags in steps[:-1]:
        try:
            ioctl(fd, TUNSETOFFLOAD, flags)
            return flags
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: an offload that this kernel does not know
                raise
    ioctl(fd, TUNSETOFFLOAD, steps[-1])
    return steps[-1]


def _explained(error: OSError, name: str) -> TunError:
    interface = f"interface {name!r}" if name else "tun interface"
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return TunError(
                "/dev/net/tun is missing: load the kernel module (`modprobe tun`), or give the container the device "
                "(`--device /dev/net/tun`)."
            )
        case errno.EPERM | errno.EACCES:
            return TunError(
                f"Opening the {interface} is not permitted: it needs root or the capability CAP_NET_ADMIN.",
                not_permitted=True,
            )
        case errno.EBUSY:
            return TunError(f"The {interface} is in use by another program: choose another with --interface.")
        case errno.EINVAL:
            return TunError(
                f"The {interface} cannot be used: the name belongs to something that is not a plain tun device."
            )
        case _:
            return TunError(f"The {interface} cannot be opened: {error.strerror}.")

"""utun: an interface that lives as long as a socket of its kernel control (net/if_utun.h, sys/kern_control.h of xnu).

Each packet has 4 bytes before it, the protocol family in network order. They end here and in shared/wire/utun.py, by which the
workers write: a packet is read with them right before its place in the slot, so that its first byte lies where it does
on Linux. There are no offloads; with an MTU of 65535 a bulk flow arrives in segments as large as those of Linux.
"""

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from typing import Final

from engine.darwin import system
from engine.darwin.interface import (
    CTLIOCGINFO,
    IFNAMSIZ,
    SYSPROTO_CONTROL,
    UTUN_OPT_IFNAME,
    UTUN_OPT_MAX_PENDING_PACKETS,
    encode_control_info,
    parse_control_id,
)
from engine.tun import ReadPacket, TunError
from shared.wire.utun import FAMILY_LEN

__all__ = ["BatchReader", "Utun", "open_utun"]

SOCKET_BUFFER: Final = 512 * 1024  # bytes; what the kernel queues must stay below it, or is dropped
BATCH: Final = 32
"""Packets taken by one system call where they are small."""
BATCH_MTU_MAX: Final = 9000
"""Bytes; up to here a packet that is copied once more costs less than a system call of its own."""

_NAME = re.compile(r"utun(\d{1,5})")
_MSGHDR_X = struct.Struct("=QI4xQi4xQIiQ")
"""name, its length, vectors, their number, control, its length, flags, length of the datagram (filled in by the kernel)."""
_IOVEC = struct.Struct("=QQ")


class Utun:
    """See engine.tun.TunDevice."""

    offload = False
    header_len = FAMILY_LEN

    def __init__(
        self, sock: socket.socket, name: str, mtu: int, *, read: ReadPacket, features: tuple[str, ...]
    ) -> None:
        self._socket = sock
        self.name = name
        self.mtu = mtu
        self.read = read
        self.features = features

    @property
    def fd(self) -> int:
        """See TunDevice."""
        return self._socket.fileno()

    def kept(self) -> int:
        """See TunDevice."""
        return self.read.kept if isinstance(self.read, BatchReader) else 0

    def close(self) -> None:
        """Close the socket; the interface, its addresses and its routes go with the last one."""
        self._socket.close()


def open_utun(name: str, *, mtu: int) -> Utun:
    """See engine.tun.open_tun. The lowest free one is taken unless `name` is utunN: the first few are the system's."""
    unit = 0
    if name:
        match = _NAME.fullmatch(name)
        if match is None:
            raise TunError(
                f"The interface name {name!r} cannot be used: on macOS it is utun and a number, such as utun8."
            )
        unit = int(match[1]) + 1
    try:
        sock = system.control_socket()
    except OSError as error:
        raise _explained(error, name) from error
    try:
        return _connect(sock, unit, mtu)
    except OSError as error:
        sock.close()
        raise _explained(error, name) from error


def _connect(sock: socket.socket, unit: int, mtu: int) -> Utun:
    control_id = parse_control_id(system.ioctl(sock, CTLIOCGINFO, encode_control_info()))
    system.connect_control(sock, control_id, unit)
    raw_name = system.get_option(sock, SYSPROTO_CONTROL, UTUN_OPT_IFNAME, IFNAMSIZ)
    sock.setblocking(False)
    # By default the kernel hands over one packet at a time and keeps the others to itself.
    pending = SOCKET_BUFFER // (mtu + FAMILY_LEN)
    try:
        system.set_option(sock, SYSPROTO_CONTROL, UTUN_OPT_MAX_PENDING_PACKETS, struct.pack("=I", pending))
    except OSError:
        pending = 1  # an older kernel
    receive = system.batch_receiver() if mtu <= BATCH_MTU_MAX and pending > 1 else None
    return Utun(
        sock,
        raw_name.rstrip(b"\0").decode(),
        mtu,
        read=os.readv if receive is None else BatchReader(receive, mtu, min(pending, BATCH)),
        features=() if receive is None else ("batches",),
    )


class BatchReader:
    """Reads like `os.readv`, but takes several packets from the kernel at a time and keeps the others for the next calls.

    It falls back to the plain call for ever when the kernel refuses (10.15 is suspected to).
    """

    def __init__(self, receive: Callable[[int, int, int], int], mtu: int, count: int) -> None:
        self._receive = receive
        self._count = count
        self._buffers = [bytearray(mtu + FAMILY_LEN) for _ in range(count)]
        # The kernel is given addresses: all of this stays where it is for as long as the reader lives.
        self._pinned: list[object] = []
        self._vectors = bytearray(_IOVEC.size * count)
        vectors_at = self._pin(self._vectors)
        blank = b""
        for i, buffer in enumerate(self._buffers):
            at = i * _IOVEC.size
            _IOVEC.pack_into(self._vectors, at, self._pin(buffer), len(buffer))
            blank += _MSGHDR_X.pack(0, 0, vectors_at + at, 1, 0, 0, 0, 0)
        self._blank = blank
        self._messages = bytearray(blank)
        self._messages_at = self._pin(self._messages)
        self._next = self._end = 0  # of the packets that are here

    @property
    def kept(self) -> int:
        """Packets that are here and have not been asked for."""
        return self._end - self._next

    def _pin(self, buffer: bytearray) -> int:
        pinned = (c_char * len(buffer)).from_buffer(buffer)
        self._pinned.append(pinned)
        return addressof(pinned)

    def __call__(self, fd: int, targets: Sequence[memoryview], /) -> int:
        """Put the next packet into the one target; return its length. Raises OSError as readv(2) does."""
        if self._next == self._end:
            if self._count == 1:
                return os.readv(fd, targets)
            self._messages[:] = self._blank  # what an earlier call has left there would be taken for our wishes
            try:
                self._end = self._receive(fd, self._messages_at, self._count)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    self._count = 1
                    return os.readv(fd, targets)
                self._next = self._end = 0
                raise
            self._next = 0
            if self._end == 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        i = self._next
        self._next = i + 1
        length: int = _MSGHDR_X.unpack_from(self._messages, i * _MSGHDR_X.size)[7]
        targets[0][:length] = memoryview(self._buffers[i])[:length]
        return length


def _explained(error: OSError, name: str) -> TunError:
    interface = f"interface {name!r}" if name else "utun interface"
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return TunError(
                f"Opening the {interface} is not permitted: it needs root. Try again with sudo.", not_permitted=True
            )
        case errno.EBUSY:
            return TunError(f"The {interface} is in use by another program: choose another with --interface.")
        case errno.ENOENT:
            return TunError("This kernel has no utun (com.apple.net.utun_control).")
        case _:
            return TunError(f"The {interface} cannot be opened: {error.strerror}.")

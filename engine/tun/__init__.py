"""The tun device: a descriptor that gives and takes whole IP packets.

`open_tun` is the one place that knows which platform this is; everything else sees a `TunDevice`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

__all__ = ["NAMED_UTUN", "Offload", "ReadPacket", "TunDevice", "TunError", "open_tun"]

NAMED_UTUN = sys.platform == "darwin"
"""Tun devices are named utunN, and in no other way."""

Offload = Literal["auto", "uso", "tso", "csum", "none", "no-header"]
"""The most that is asked of the kernel: UDP and TCP segments up to 64 KiB, TCP segments only, partial checksums only, a
virtio header without any offload, or bare IP packets. `auto` is the best there is. What is refused gives way to the next."""


class TunError(Exception):
    """The device cannot be opened; its text is one sentence with the cause and the way out."""

    def __init__(self, message: str, *, not_permitted: bool = False) -> None:
        super().__init__(message)
        self.not_permitted = not_permitted


ReadPacket = Callable[[int, Sequence[memoryview]], int]
"""Reads one packet as `os.readv` does (which it is, on Linux): descriptor and one target in, length out; BlockingIOError."""


class TunDevice(Protocol):
    """An open tun. It exists until the last descriptor of it is closed (those that workers inherited count)."""

    @property
    def fd(self) -> int:
        """Non-blocking descriptor; one read or write is one packet."""

    @property
    def name(self) -> str:
        """Name of the interface."""

    @property
    def offload(self) -> bool:
        """Every packet begins with the 10-byte virtio header (shared/wire/virtio.py)."""

    @property
    def header_len(self) -> int:
        """Bytes before the IP packet in each read and write: the virtio header (10), a protocol family (4), or nothing."""

    @property
    def read(self) -> ReadPacket:
        """How a packet is read from `fd`, with `header_len` bytes before it."""

    @property
    def features(self) -> tuple[str, ...]:
        """Offloads that the kernel granted, by name, for `engine status`."""

    @property
    def mtu(self) -> int:
        """Bytes of the largest IP packet that is not a GSO segment; engine/netconf gives it to the interface."""

    def kept(self) -> int:
        """Return the packets that `read` has taken from the kernel already: they do not make `fd` readable."""

    def close(self) -> None:
        """Close this descriptor; harmless when repeated."""


def open_tun(name: str = "", *, mtu: int, offload: Offload = "auto") -> TunDevice:
    """Open the tun `name`, or the first free tunN when it is empty, with the best offload that the kernel grants.

    Raises TunError when the platform has no tun, the name cannot be used, or the caller may not.
    """
    if sys.platform == "linux":
        from engine.tun.linux import open_linux_tun

        return open_linux_tun(name, mtu=mtu, offload=offload)
    if sys.platform == "darwin":
        from engine.tun.darwin import open_utun

        return open_utun(name, mtu=mtu)
    raise TunError(f"The engine has no tun device for {sys.platform}: it runs on Linux and macOS.")

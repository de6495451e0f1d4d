"""Reads fields one after another; the sniffers' only way to what a length field promises."""

__all__ = ["Reader", "Truncated"]


class Truncated(Exception):
    """The data ends before the field does."""


class Reader:
    """A position in `data`. Numbers are big-endian. Every method raises Truncated rather than return too little."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """Read `size` bytes."""
        end = self.at + size
        if end > len(self.data):
            raise Truncated
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, size: int) -> int:
        """Read an unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        """Read bytes behind their length, which is a number of `length_size` bytes (RFC 8446, 3.4)."""
        return self.take(self.number(length_size))

    def varint(self) -> int:
        """Read a variable-length integer of QUIC (RFC 9000, 16)."""
        first = self.number(1)
        size = 1 << (first >> 6)
        return (first & 0x3F) << 8 * (size - 1) | self.number(size - 1)

"""The Internet checksum (RFC 1071) over buffers of up to 64 KiB, without a loop in Python.

The one's complement sum of 16-bit words is the value of the buffer, read as one big-endian number, modulo 0xFFFF
(because 2**16 = 1 mod 0xFFFF). CPython does both conversions in C: a 1500-byte packet takes about 2 us.
"""

from shared.buffer import Buffer

__all__ = ["checksum", "ones_sum", "pseudo_header_sum"]


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """Return the one's complement sum of `data` (padded with a zero byte to even length) plus `initial`, in 0..0xFFFF.

    0 is returned only when every byte and `initial` are zero, as RFC 1071's folding loop does: a sum congruent to zero
    is otherwise 0xFFFF.
    """
    view = memoryview(data)
    value = int.from_bytes(view, "big")
    if view.nbytes & 1:
        value <<= 8
    value += initial
    return value % 0xFFFF or (0xFFFF if value else 0)


def checksum(data: Buffer, initial: int = 0) -> int:
    """Return the checksum field for `data` whose own field is zero. `initial` is a sum to start from."""
    return ones_sum(data, initial) ^ 0xFFFF


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Return the sum of the pseudo header of RFC 9293 (3.1) / RFC 8200 (8.1); `length` of the upper layer in bytes.

    The same arithmetic serves both versions: their fields differ only by zero bytes.
    """
    return (int.from_bytes(source, "big") + int.from_bytes(destination, "big") + protocol + length) % 0xFFFF

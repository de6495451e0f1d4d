"""Sequence numbers (RFC 9293 3.4) without wrap-around.

On the wire a number has 32 bits and wraps. Inside a connection a position is a plain integer that only grows, so that
`<` and `-` mean what they say; `unwrap` turns a wire number into the position nearest to a known one, `& MASK` turns it back.
"""

__all__ = ["HALF", "MASK", "is_before", "unwrap"]

MASK = 0xFFFFFFFF
HALF = 0x80000000


def unwrap(number: int, near: int) -> int:
    """Return the position that is `number` on the wire and lies in [near - 2**31, near + 2**31)."""
    return near + ((number - near + HALF) & MASK) - HALF


def is_before(a: int, b: int) -> bool:
    """Whether wire number `a` comes before `b` in the space of 2**32 (RFC 9293 3.4; timestamps: RFC 7323 5.3)."""
    return (a - b) & MASK >= HALF

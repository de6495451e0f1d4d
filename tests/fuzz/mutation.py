"""Damage to packets, most of it to headers: that is where lies are believed."""

from random import Random

from shared.wire.virtio import F_NEEDS_CSUM

__all__ = ["mutated"]

HEADERS = 110  # bytes from the start in which nearly all headers lie
INTERESTING = (0, 1, 4, 5, 6, 8, 17, 19, 20, 40, 43, 44, 58, 59, 60, 64, 127, 128, 255)


def mutated(seed: bytes | bytearray, random: Random) -> bytearray:
    """Return a copy of `seed` with one to four wounds, half of them declared by the kernel to be right all the same."""
    data = bytearray(seed)
    for _ in range(1 + int(random.random() * 4)):
        _wound(data, random)
    if data and random.random() < 0.5:
        data[0] |= F_NEEDS_CSUM
    return data


def _wound(data: bytearray, random: Random) -> None:
    size = len(data)
    if not size:
        data += random.randbytes(1)
        return
    draw = random.random
    at = int(draw() * min(size, HEADERS))
    kind = int(draw() * 8)
    if kind < 2:
        data[at] ^= 1 << int(draw() * 8)
    elif kind < 4:
        data[at] = INTERESTING[int(draw() * len(INTERESTING))]
    elif kind == 4:  # a 16-bit field, near a length or at an end of its range
        value = (size - int(draw() * 64), 0, 0xFFFF, int(draw() * 0x10000))[int(draw() * 4)]
        data[at & ~1 : (at & ~1) + 2] = (value & 0xFFFF).to_bytes(2, "big")
    elif kind == 5:
        del data[int(draw() * size) :]
    elif kind == 6:
        data += random.randbytes(int(draw() * 40))
    else:  # a piece twice
        data[at:at] = data[at : at + int(draw() * 24)]

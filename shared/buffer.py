"""The type of bytes in place, which Python names only since 3.12 (collections.abc.Buffer)."""

from typing import TypeAlias

__all__ = ["Buffer"]

Buffer: TypeAlias = bytes | bytearray | memoryview

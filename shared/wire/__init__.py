"""Codecs: bytes <-> fields. Pure functions and named constants, one module a protocol; no I/O, no state."""

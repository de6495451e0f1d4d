"""What rules can see of a flow. Filled step by step: addresses at once, names and processes only when a rule asks."""

from typing import Literal, NamedTuple

import msgspec

from shared.process import ProcessInfo

__all__ = ["Ends", "Flow"]


class Ends(NamedTuple):
    """A flow as its packets name it, seen from the application. Addresses are packed, 4 or 16 bytes."""

    network: Literal["tcp", "udp"]
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


class Flow(msgspec.Struct, kw_only=True):
    """One TCP connection, or what one UDP socket sends to one destination."""

    network: Literal["tcp", "udp", "icmp"]
    source: bytes
    """Packed, 4 or 16 bytes."""
    source_port: int
    destination: bytes
    """Packed; empty when only a name is known: `destination_name`."""
    destination_port: int
    inbound: str = "tun-in"
    destination_name: str | None = None
    """Of a fake address, or put in the place of an address: what the outbound is asked for."""
    domain: str | None = None
    """Lower case, without the final dot: of the DNS answer that gave the address, or sniffed. Rules see it before
    `destination_name`."""
    sniffed: bool = False
    """Somebody has looked at the first bytes."""
    protocol: str | None = None
    client: str | None = None
    process: ProcessInfo | None = None
    """None: nobody has looked yet; ProcessInfo() when there is nothing to be found."""
    resolved: tuple[bytes, ...] = ()
    """Addresses of `domain`, after a `resolve` action; packed."""
    query_type: int | None = None
    """DNS rules: type of the question."""
    outbound: str | None = None
    """DNS rules: the outbound whose server is looked up."""

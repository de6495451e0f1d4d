"""Tells when another program takes the kill switch's table away: `nft flush ruleset`, or a firewall that loads its own.

The kernel tells of each change of nftables (NFNLGRP_NFTABLES), and ends those of one transaction with its generation. Layouts and
numbers: include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from engine.netconf.kill_switch import TABLE
from engine.netconf.rtnetlink import read_attributes, read_waiting, split_messages

__all__ = ["NftablesWatch"]

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
DELTABLE, DELCHAIN, NEWRULE, DELRULE, NEWGEN = 2, 5, 6, 8, 15
"""NFT_MSG_*"""
NFTA_TABLE_NAME = 1
"""NFTA_CHAIN_TABLE and NFTA_RULE_TABLE are the same."""
NFPROTO_INET = 1
_GENERIC = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource


class NftablesWatch:
    """Calls `on_lost` when a transaction has left nothing of the table, or not all of it. Raises OSError."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._damaged = False
        self._name = TABLE.partition(" ")[2].encode()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _on_readable(self) -> None:
        for data in read_waiting(self._socket):
            if data is None:
                self._on_lost()  # perhaps
            else:
                for kind, body in split_messages(data):
                    self._take(kind, body)

    def _take(self, kind: int, body: bytes) -> None:
        subsystem, message = divmod(kind, 256)
        if subsystem != NFNL_SUBSYS_NFTABLES or len(body) < _GENERIC.size:
            return
        if message == NEWGEN:
            if self._damaged:
                self._damaged = False
                self._on_lost()
        elif body[0] == NFPROTO_INET:
            name = read_attributes(body[_GENERIC.size :]).get(NFTA_TABLE_NAME, b"")
            if name.rstrip(b"\0") == self._name:
                if message in (DELTABLE, DELCHAIN, DELRULE):
                    self._damaged = True
                elif message == NEWRULE:  # ours, loaded anew in the same transaction
                    self._damaged = False

"""Messages on the master <-> worker socket, and on the control socket of a running engine (RUN_DIR/control.sock).

Master <-> worker is a SOCK_SEQPACKET pair: one message, one datagram, msgpack. The control socket is a stream of JSON
lines, one request and one reply a connection, so that `socat` can speak to it too.
"""

import msgspec

from shared.config import WorkerConfig

__all__ = ["Configure", "Failed", "Ready", "Stop", "decode_from_master", "decode_from_worker", "encode"]

MESSAGE_MAX = 64 * 1024
"""Bytes of the largest message."""


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """Master -> worker, once, first: everything beside the inherited descriptors."""

    config: WorkerConfig


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Master -> worker: reset the flows and exit 0."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Worker -> master: the rings are being served."""

    pid: int


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Worker -> master: it cannot start; one sentence for the user."""

    reason: str


class UdpSupport(msgspec.Struct, tag="udp_support", frozen=True):
    """Worker -> master: whether the upstream relays UDP, as the last association showed."""

    supported: bool
    reason: str


encode = msgspec.msgpack.Encoder().encode
decode_from_master = msgspec.msgpack.Decoder(Configure | Stop).decode
decode_from_worker = msgspec.msgpack.Decoder(Ready | Failed | UdpSupport).decode

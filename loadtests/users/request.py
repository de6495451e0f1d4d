"""How an exchange is told to locust: its time, its bytes, and what was wrong with it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from urllib.parse import urlsplit

from locust import User

from loadtests.flow_ends import FlowEnds

__all__ = ["TIMEOUT", "Exchange", "WrongAnswer", "connect", "exchange", "lost", "target"]

TIMEOUT = 10.0
"""Seconds without a byte after which a TCP exchange has failed."""


class WrongAnswer(Exception):
    """What came back is not what belongs there."""


class Exchange:
    """One exchange under way: set `size` to the bytes that came back, `flow` to its ends, `ms` to override the time."""

    size = 0
    flow: FlowEnds | None = None
    ms: float | None = None


@contextmanager
def exchange(user: User, kind: str, name: str, flow: FlowEnds | None = None) -> Iterator[Exchange]:
    """Time the body and report it as the request `name`; OSError and WrongAnswer are its failure and go no further."""
    made = Exchange()
    made.flow = flow
    failure: Exception | None = None
    began = perf_counter()
    try:
        yield made
    except (OSError, WrongAnswer) as error:
        failure = error
    user.environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=made.ms if made.ms is not None else (perf_counter() - began) * 1000,
        response_length=made.size,
        exception=failure,
        context={"flow": made.flow},
    )


def lost(user: User, kind: str, name: str, flow: FlowEnds | None) -> None:
    """Report a datagram, or its answer, that did not come: not a failure by itself, but the ratio has a limit (objectives.py)."""
    user.environment.events.request.fire(
        request_type=kind,
        name=f"{name} lost",
        response_time=0,
        response_length=0,
        exception=None,
        context={"flow": flow, "lost": True},
    )


def target(user: User) -> str:
    """Return the address of the targets: that of locust's option --host."""
    host = urlsplit(user.host or "").hostname
    assert host, "say where the targets are: --host http://203.0.113.10"
    return host


def connect(made: Exchange, address: str, port: int) -> socket.socket:
    """Return a connection, whose endpoint is noted. Raises OSError."""
    flow = socket.create_connection((address, port), timeout=TIMEOUT)
    made.flow = FlowEnds.of(flow)
    return flow

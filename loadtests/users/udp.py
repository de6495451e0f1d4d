"""Datagrams: a call, as voice and games make it, and questions to a DNS server. What is lost is counted as lost."""

import os
import random
import socket
import struct
from time import perf_counter

import dns.exception
import dns.message
import dns.rdatatype
from locust import User, between, task

from engine.demo.targets import DATAGRAM_MAX, ECHO_PORT
from loadtests.flow_ends import FlowEnds
from loadtests.targets import DNS_PORT, address_of
from loadtests.users.request import Exchange, WrongAnswer, exchange, lost, target

__all__ = ["Dns", "UdpEcho", "call", "question"]

INTERVAL = 0.02
"""Seconds between two datagrams of a call."""
CALL_DATAGRAMS = 50
PAYLOAD = (40, 1200)  # bytes, between
ANSWER_TIMEOUT = 1.0
"""Seconds after which a datagram or its answer counts as lost."""
_NUMBER = struct.Struct("!I")


def call(user: User, datagrams: int = CALL_DATAGRAMS) -> None:
    """Send datagrams in a steady rhythm and take in their echoes; each is a request, with its round trip as the time."""
    sent: dict[int, tuple[float, bytes]] = {}
    with socket.socket(socket.AF_INET6 if ":" in target(user) else socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.connect((target(user), ECHO_PORT))
        ends = FlowEnds.of(flow)
        for number in range(datagrams):
            payload = _NUMBER.pack(number) + os.urandom(random.randint(*PAYLOAD))
            sent[number] = perf_counter(), payload
            with exchange(user, "UDP", "send", ends) as made:
                made.size = flow.send(payload)
            _take_echoes(user, flow, ends, sent, perf_counter() + INTERVAL)
        _take_echoes(user, flow, ends, sent, perf_counter() + ANSWER_TIMEOUT)
    for _ in sent:
        lost(user, "UDP", "echo", ends)


def _take_echoes(
    user: User, flow: socket.socket, ends: FlowEnds, sent: dict[int, tuple[float, bytes]], until: float
) -> None:
    """Take in echoes until that time, or until none is missing any more."""
    while sent and (left := until - perf_counter()) > 0:
        flow.settimeout(left)
        try:
            echo = flow.recv(DATAGRAM_MAX)
        except TimeoutError:
            return
        except OSError as error:  # ICMP: it is refused
            with exchange(user, "UDP", "echo", ends):
                raise error
        with exchange(user, "UDP", "echo", ends) as made:
            _check(made, echo, sent)


def _check(made: Exchange, echo: bytes, sent: dict[int, tuple[float, bytes]]) -> None:
    made.size = len(echo)
    number = _NUMBER.unpack_from(echo)[0] if len(echo) >= _NUMBER.size else -1
    if number not in sent:
        raise WrongAnswer("an echo of nothing that was sent, or the second one")
    sent_at, payload = sent.pop(number)
    made.ms = (perf_counter() - sent_at) * 1000
    if echo != payload:
        raise WrongAnswer("the echo is not what was sent")


def question(user: User) -> None:
    """Ask the DNS server for the address of a name."""
    name = f"host{random.randrange(100_000)}.example."
    query = dns.message.make_query(name, dns.rdatatype.A)
    with socket.socket(socket.AF_INET6 if ":" in target(user) else socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.settimeout(ANSWER_TIMEOUT)
        flow.connect((target(user), DNS_PORT))
        ends = FlowEnds.of(flow)
        with exchange(user, "DNS", "A", ends) as made:
            try:
                flow.send(query.to_wire())
                answer = flow.recv(DATAGRAM_MAX)
            except TimeoutError:
                answer = b""
            made.size = len(answer)
            if answer:
                _check_answer(name, query, answer)
        if not answer:
            lost(user, "DNS", "A", ends)


def _check_answer(name: str, query: dns.message.Message, answer: bytes) -> None:
    try:
        response = dns.message.from_wire(answer)
        addresses = [record.address for rrset in response.answer for record in rrset]
    except (dns.exception.DNSException, AttributeError) as error:
        raise WrongAnswer(f"not an answer: {error}") from error
    if not query.is_response(response) or addresses != [address_of(name)]:
        raise WrongAnswer(f"{addresses} are not the addresses of {name}")


class UdpEcho(User):
    """One call after another, each from a socket of its own."""

    wait_time = between(0.1, 0.5)

    @task
    def talk(self) -> None:
        """One call."""
        call(self)


class Dns(User):
    """A question every 20 to 100 ms."""

    wait_time = between(0.02, 0.1)

    @task
    def ask(self) -> None:
        """One question."""
        question(self)

"""Which server stands for the one that a program has asked."""

import socket

import pytest

from tests.support.loop import on_loop
from tests.workers.dns.messages import ask, texts
from tests.workers.dns.servers.scripted import Scripted, failing
from workers.dns.servers import addressee
from workers.dns.servers.addressee import AddresseeServers, scope_of


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class Made:
    """AddresseeServers and the servers that were made for it."""

    def __init__(self) -> None:
        self.default = Scripted("192.0.2.200")
        self.made: dict[str, Scripted] = {}
        self.servers = AddresseeServers(self.default, self.make)

    def make(self, address: str) -> Scripted:
        self.made[address] = Scripted("192.0.2.1")
        return self.made[address]


@pytest.mark.parametrize("address", ["8.8.8.8", "203.0.113.10", "2001:db8::10"])
@on_loop
async def test_public_server_is_asked_itself(address: str) -> None:
    made = Made()
    answer = await made.servers.find(packed(address)).exchange(ask())
    assert texts(answer) == ["example.com. 300 A 192.0.2.1"]
    assert list(made.made) == [address]
    assert scope_of(packed(address)) != scope_of(b"")


@pytest.mark.parametrize(
    "address",
    [
        "192.168.1.1", "10.0.0.1", "172.31.0.1", "100.64.0.1", "127.0.0.53", "169.254.1.1", "198.18.0.2", "224.0.0.251",
        "fd00::1", "fe80::1", "::1", "ff02::fb", "::ffff:192.168.1.1",
    ],
)  # fmt: skip
@on_loop
async def test_private_server_is_replaced(address: str) -> None:
    made = Made()
    answer = await made.servers.find(packed(address)).exchange(ask())
    assert texts(answer) == ["example.com. 300 A 192.0.2.200"]
    assert not made.made
    assert scope_of(packed(address)) == scope_of(b"")


@on_loop
async def test_public_server_that_does_not_answer_is_replaced() -> None:
    made = Made()
    server = made.servers.find(packed("8.8.8.8"))
    made.made["8.8.8.8"].script = failing
    assert texts(await server.exchange(ask())) == ["example.com. 300 A 192.0.2.200"]


def test_servers_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addressee, "SERVERS_MAX", 2)
    made = Made()
    for last in range(1, 4):
        made.servers.find(bytes((8, 8, 8, last)))
    assert made.made["8.8.8.1"].closed
    assert not made.made["8.8.8.3"].closed
    assert not made.default.closed, "it belongs to all"
    made.servers.close()
    assert made.made["8.8.8.3"].closed and made.default.closed

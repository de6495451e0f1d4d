"""Servers that need not ask: hosts, fakeip, rcode."""

import pytest

from tests.workers.dns.messages import query, read, texts
from workers.dns.servers.known import FakeIpServer, HostsServer, RcodeServer

HOSTS = HostsServer([("Router.lan", ("192.0.2.1", "2001:db8::1")), ("v4.lan.", ("192.0.2.2",))])


def test_hosts_have_the_addresses_of_the_family_asked_for() -> None:
    assert texts(HOSTS.answer(query("router.LAN"))) == ["router.LAN. 600 A 192.0.2.1"]
    assert texts(HOSTS.answer(query("router.lan", "AAAA"))) == ["router.lan. 600 AAAA 2001:db8::1"]


@pytest.mark.parametrize(
    ("name", "qtype", "rcode"), [("v4.lan", "AAAA", 0), ("v4.lan", "TXT", 0), ("other.lan", "A", 3)]
)
def test_hosts_without_such_a_record(name: str, qtype: str, rcode: int) -> None:
    message = read(HOSTS.answer(query(name, qtype)))
    assert (message.rcode(), message.answer) == (rcode, [])


@pytest.mark.parametrize("entry", [("a..b", ("192.0.2.1",)), ("a.b", ("nonsense",))])
def test_hosts_that_are_none(entry: tuple[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"name|address"):
        HostsServer([entry])


def test_rcode() -> None:
    assert read(RcodeServer(5).answer(query())).rcode() == 5


class Table:
    """Gives out IPv4 addresses only; none while it `is_busy`."""

    def __init__(self) -> None:
        self.busy = 0
        self.is_busy = False

    def address_of(self, name: str, version: int) -> bytes | None:
        assert name == "example.com"
        if self.is_busy:
            self.busy += 1
            return None
        return bytes((198, 18, 0, 9)) if version == 4 else None


def test_fake_address_stands_for_the_name() -> None:
    server = FakeIpServer(Table())
    assert texts(server.answer(query("Example.com"))) == ["Example.com. 60 A 198.18.0.9"]
    for qtype in "AAAA", "HTTPS":
        message = read(server.answer(query(qtype=qtype)))
        assert (message.rcode(), message.answer) == (0, [])


def test_while_the_table_of_fake_addresses_is_busy_programs_are_to_ask_again() -> None:
    table = Table()
    server = FakeIpServer(table)
    table.is_busy = True
    assert read(server.answer(query())).rcode() == 2
    table.is_busy = False
    assert texts(server.answer(query())) == ["example.com. 60 A 198.18.0.9"]

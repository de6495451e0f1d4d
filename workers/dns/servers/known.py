"""Servers that know the answer: hosts, fakeip, rcode."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from workers.dns import Names
from workers.dns.answers import AAAA, IN, A, addresses_reply, rcode_reply
from workers.dns.wire import Query, name_text, wire_name

__all__ = ["FakeIpServer", "HostsServer", "RcodeServer"]

SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5
HOSTS_TTL = 600
"""Seconds, as sing-box says for what does not change."""
FAKE_TTL = 60
"""Seconds. Short: the address of a name that nobody uses any more is given to another one day."""


class HostsServer:
    """A fixed table. A name that is not in it does not exist."""

    def __init__(self, hosts: Iterable[tuple[str, Sequence[str]]]) -> None:
        """`hosts`: names and their addresses. Raises ValueError."""
        self._hosts = {wire_name(name): tuple(ip_address(text).packed for text in texts) for name, texts in hosts}

    def answer(self, query: Query) -> bytes:
        """The addresses of the kind asked for; of other types a known name has no record."""
        addresses = self._hosts.get(query.name)
        if addresses is None:
            return rcode_reply(query, NXDOMAIN)
        if query.qtype not in (A, AAAA) or query.qclass != IN:
            return rcode_reply(query, 0)
        return addresses_reply(query, addresses, HOSTS_TTL)


class RcodeServer:
    """The same answer to every question."""

    def __init__(self, rcode: int) -> None:
        self._rcode = rcode

    def answer(self, query: Query) -> bytes:
        """No records."""
        return rcode_reply(query, self._rcode)


class FakeIpServer:
    """An address that stands for the name: the proxy is asked for the name when a program connects to it."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def answer(self, query: Query) -> bytes:
        """One address; other types, such as HTTPS with its address hints, have no record.

        A failure while another process is at the table, so that the program asks again: without a record it would give up.
        """
        if query.qtype not in (A, AAAA) or query.qclass != IN:
            return rcode_reply(query, 0)
        busy = self._names.busy
        address = self._names.address_of(name_text(query.name), 4 if query.qtype == A else 6)
        if self._names.busy != busy:
            return rcode_reply(query, SERVFAIL)
        return addresses_reply(query, () if address is None else (address,), FAKE_TTL)

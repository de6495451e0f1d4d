"""The machine's own resolver configuration: /etc/hosts, then the name servers of /etc/resolv.conf (resolv.conf(5), hosts(5)).

Where systemd-resolved is the name server, those behind it are asked: it may itself ask the tun, and so us.
"""

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

from workers.dns import Server, ServerFailed
from workers.dns.answers import AAAA, A, addresses_reply
from workers.dns.servers.failover import FailoverServer
from workers.dns.wire import parse_query, wire_name

__all__ = ["LocalServer", "name_servers"]

RESOLV_CONF = Path("/etc/resolv.conf")
BEHIND_RESOLVED = Path("/run/systemd/resolve/resolv.conf")
HOSTS = Path("/etc/hosts")
RESOLVED_STUBS = ("127.0.0.53", "127.0.0.54")
SERVERS_MAX = 3  # MAXNS of resolv.h
PATIENCE = 3.0
"""Seconds for a server before the next is asked."""
LOOK_AGAIN_AFTER = 5.0
"""Seconds between two looks whether the files have changed."""
HOSTS_TTL = 60


class LocalServer:
    """A Server that asks as the machine's programs would, directly."""

    def __init__(
        self,
        make: Callable[[str], Server],
        *,
        own: frozenset[str] = frozenset(),
        resolv_conf: Path = RESOLV_CONF,
        behind_resolved: Path = BEHIND_RESOLVED,
        hosts: Path = HOSTS,
    ) -> None:
        """`make` returns a server at an address; `own`: addresses that are ours, to be left out."""
        self._make = make
        self._own = own
        self._paths = (resolv_conf, behind_resolved, hosts)
        self._state: tuple[object, ...] | None = None
        self._look_at = 0.0
        self._servers: FailoverServer | None = None
        self._hosts: dict[bytes, tuple[bytes, ...]] = {}

    async def exchange(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ServerFailed."""
        self._refresh()
        query = parse_query(message)
        assert query is not None, "we have built it"
        if query.qtype in (A, AAAA) and (addresses := self._hosts.get(query.name)):
            return addresses_reply(query, addresses, HOSTS_TTL)
        if self._servers is None:
            raise ServerFailed(f"{self._paths[0]} names no name server")
        return await self._servers.exchange(message)

    def _refresh(self) -> None:
        now = monotonic()
        if self._state is not None and now < self._look_at:
            return
        self._look_at = now + LOOK_AGAIN_AFTER
        state = tuple(_identity(path) for path in self._paths)
        if state == self._state:
            return
        self._state = state
        self.close()
        resolv_conf, behind_resolved, hosts = self._paths
        addresses = name_servers(_text(resolv_conf))
        if any(address in RESOLVED_STUBS for address in addresses):
            addresses = name_servers(_text(behind_resolved)) or addresses
        servers = [self._make(address) for address in addresses if address not in self._own]
        self._servers = FailoverServer(servers, patience=PATIENCE) if servers else None
        self._hosts = _parse_hosts(_text(hosts))

    def close(self) -> None:
        """Close all connections."""
        if self._servers is not None:
            self._servers.close()
            self._servers = None


def name_servers(text: str) -> list[str]:
    """Return the addresses of a resolv.conf, at most three; the local host when it names none (resolv.conf(5))."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(str(ip_address(words[1])))
            except ValueError:
                continue
    return found[:SERVERS_MAX] or ["127.0.0.1"]


def _parse_hosts(text: str) -> dict[bytes, tuple[bytes, ...]]:
    found: dict[bytes, tuple[bytes, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            packed = ip_address(address.partition("%")[0]).packed
            keys = [wire_name(name) for name in names]
        except ValueError:
            continue
        for key in keys:
            found[key] = (*found.get(key, ()), packed)
    return found


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""The machine's files: which servers and hosts they name, and that changes are seen."""

from pathlib import Path

import pytest

from tests.support.loop import on_loop
from tests.workers.dns.messages import ask, texts
from tests.workers.dns.servers.scripted import Scripted
from workers.dns import Server, ServerFailed
from workers.dns.servers import local
from workers.dns.servers.local import LocalServer, name_servers


class Machine:
    """Files of a machine, and the servers that were made for it."""

    def __init__(self, directory: Path, resolv_conf: str, hosts: str = "", behind: str = "") -> None:
        self.resolv_conf = directory / "resolv.conf"
        self.hosts = directory / "hosts"
        self.behind = directory / "behind"
        for path, text in ((self.resolv_conf, resolv_conf), (self.hosts, hosts), (self.behind, behind)):
            path.write_text(text)
        self.made: dict[str, Scripted] = {}
        self.server = LocalServer(
            self.make,
            own=frozenset({"198.18.0.2"}),
            resolv_conf=self.resolv_conf,
            behind_resolved=self.behind,
            hosts=self.hosts,
        )

    def make(self, address: str) -> Server:
        self.made[address] = Scripted()
        return self.made[address]


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOK_AGAIN_AFTER", 0.0)


@on_loop
async def test_the_first_name_server_is_asked(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "# a comment\nsearch lan\nnameserver 192.0.2.53\nnameserver 2001:db8::53 \n")
    assert texts(await machine.server.exchange(ask())) == ["example.com. 300 A 192.0.2.1"]
    assert list(machine.made) == ["192.0.2.53", "2001:db8::53"]
    assert (len(machine.made["192.0.2.53"].asked), len(machine.made["2001:db8::53"].asked)) == (1, 0)


@on_loop
async def test_hosts_come_first(tmp_path: Path) -> None:
    hosts = "192.0.2.9 Example.com www # comment\n2001:db8::9 example.com\nfe80::1%eth0 link\nrubbish here\n\n"
    machine = Machine(tmp_path, "nameserver 192.0.2.53\n", f"{hosts}192.0.2.10 example.com\n")
    assert texts(await machine.server.exchange(ask("EXAMPLE.com"))) == [
        "EXAMPLE.com. 60 A 192.0.2.10",
        "EXAMPLE.com. 60 A 192.0.2.9",
    ]
    assert texts(await machine.server.exchange(ask(qtype="AAAA"))) == ["example.com. 60 AAAA 2001:db8::9"]
    await machine.server.exchange(ask(qtype="TXT"))
    await machine.server.exchange(ask("other.example.com"))
    assert len(machine.made["192.0.2.53"].asked) == 2


@on_loop
async def test_behind_resolved_are_the_servers_that_it_asks_but_not_ourselves(tmp_path: Path) -> None:
    behind = "nameserver 198.18.0.2\nnameserver 192.0.2.53\n"
    machine = Machine(tmp_path, "nameserver 127.0.0.53\noptions edns0\n", behind=behind)
    await machine.server.exchange(ask())
    assert list(machine.made) == ["192.0.2.53"]


@on_loop
async def test_a_change_is_seen(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "nameserver 192.0.2.53\n")
    await machine.server.exchange(ask())
    machine.resolv_conf.write_text("nameserver 192.0.2.54 \n")
    await machine.server.exchange(ask())
    assert machine.made["192.0.2.53"].closed
    assert len(machine.made["192.0.2.54"].asked) == 1


@on_loop
async def test_nobody_but_ourselves(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "nameserver 198.18.0.2\n")
    with pytest.raises(ServerFailed, match="names no name server"):
        await machine.server.exchange(ask())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["127.0.0.1"]),
        ("nameserver\nnameserver nonsense\n", ["127.0.0.1"]),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(5)), ["192.0.2.0", "192.0.2.1", "192.0.2.2"]),
    ],
)
def test_name_servers(text: str, expected: list[str]) -> None:
    assert name_servers(text) == expected

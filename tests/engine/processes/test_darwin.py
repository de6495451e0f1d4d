"""engine/processes/darwin.py on the kernel of tests/support/darwin."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from engine.processes import Holder, ProcessError
from engine.processes.darwin import DarwinProcessTable, parse_arguments
from shared.rules.flow import Ends
from tests.support.darwin.kernel import Kernel
from tests.support.darwin.messages import pcb_table, socket_records
from tests.support.darwin.stand_in import stand_in

ANY, ANY6 = "0.0.0.0", "::"


def packed(text: str) -> bytes:
    return ip_address(text).packed


def flow(network: str, source: str, source_port: int, destination: str, port: int) -> Ends:
    return Ends(network, packed(source), source_port, packed(destination), port)  # type: ignore[arg-type]


def record(
    handle: int, local: tuple[str, int], remote: tuple[str, int], *, pid: int, vflag: int = 1, tcp: bool = True
) -> bytes:
    return socket_records(handle=handle, local=local, remote=remote, vflag=vflag, last_pid=pid, tcp=tcp)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    made.tables["net.inet.tcp.pcblist_n"] = pcb_table(
        record(101, ("198.18.0.1", 50000), ("203.0.113.9", 443), pid=321),
        record(102, ("127.0.0.1", 1080), (ANY, 0), pid=400),
        record(103, (ANY6, 1086), (ANY6, 0), pid=401, vflag=3),
        record(104, ("192.168.1.50", 50001), ("203.0.113.80", 443), pid=400),
    )
    made.tables["net.inet.udp.pcblist_n"] = pcb_table(
        record(201, (ANY, 5353), (ANY, 0), pid=90, tcp=False),
        record(202, ("198.18.0.1", 6000), ("203.0.113.9", 443), pid=321, tcp=False),
        record(203, (ANY6, 6001), (ANY6, 0), pid=322, vflag=3, tcp=False),
        record(204, (ANY6, 6002), (ANY6, 0), pid=323, vflag=2, tcp=False),
    )
    made.processes = {
        321: (1, 501, "/Applications/Safari.app/Contents/MacOS/Safari", ("Safari",)),
        400: (1, 502, "/usr/local/bin/v2ray", ("v2ray", "run", "-c", "my config.json")),
        410: (400, 502, "/usr/local/bin/plugin", ("plugin",)),
        411: (410, 502, "/usr/local/bin/plugin", ()),
    }
    stand_in(lambda name, *arguments: getattr(made, name)(*arguments), monkeypatch.setattr)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("asked", "handle"),
    [
        (flow("tcp", "198.18.0.1", 50000, "203.0.113.9", 443), 101),
        (flow("tcp", "198.18.0.1", 50000, "203.0.113.10", 443), None),
        (flow("tcp", "198.18.0.2", 50000, "203.0.113.9", 443), None),
        (flow("udp", "198.18.0.1", 6000, "203.0.113.9", 443), 202),
        (flow("udp", "198.18.0.1", 5353, "203.0.113.9", 53), 201),
        (flow("udp", "198.18.0.1", 6001, "203.0.113.9", 53), 203),
        (flow("udp", "198.18.0.1", 6002, "203.0.113.9", 53), None),  # an IPv6 socket that takes IPv6 alone
        (flow("udp", "fd00::1", 6002, "2001:db8::9", 53), 204),
        (flow("udp", "fd00::1", 5353, "2001:db8::9", 53), None),
        (flow("udp", "198.18.0.1", 6000, "203.0.113.77", 443), None),  # connected to somebody else
    ],
)
def test_find(kernel: Kernel, asked: Ends, handle: int | None) -> None:
    found = DarwinProcessTable().find(asked)
    assert (found.inode if found else None) == handle


def test_socket_made_after_the_last_look_is_found(kernel: Kernel) -> None:
    table = DarwinProcessTable()
    asked = flow("tcp", "198.18.0.1", 50007, "203.0.113.9", 443)
    assert table.find(asked) is None
    kernel.tables["net.inet.tcp.pcblist_n"] = pcb_table(
        record(107, ("198.18.0.1", 50007), ("203.0.113.9", 443), pid=321)
    )
    found = table.find(asked)
    assert found is not None
    assert table.holders([found.inode]) == {107: Holder(321, -1)}
    assert table.holds(Holder(321, -1), 107)
    assert not table.holds(Holder(322, -1), 107)


@pytest.mark.parametrize(
    ("address", "port", "handle"),
    [
        ("127.0.0.1", 1080, 102),
        ("127.0.0.1", 1086, 103),
        ("::1", 1086, 103),
        ("::1", 1080, None),
        ("127.0.0.1", 50000, None),
    ],
)
def test_listener(kernel: Kernel, address: str, port: int, handle: int | None) -> None:
    found = DarwinProcessTable().listener(packed(address), port)
    assert (found.inode if found else None) == handle


def test_listeners_and_connections(kernel: Kernel) -> None:
    table = DarwinProcessTable()
    assert [one.inode for one in table.listeners()] == [102, 103]
    assert [one.inode for one in table.connections("tcp")] == [101, 104]
    assert table.sockets_of(400) == {102, 104}
    assert table.all_holders(103) == [401]


def test_processes(kernel: Kernel) -> None:
    table = DarwinProcessTable()
    assert table.descendants(400) == [410, 411]
    assert table.descendants(321) == []
    assert table.ancestors(411) == [410, 400]
    assert (table.uid_of(400), table.uid_of(9999)) == (502, None)
    assert table.arguments(400) == ("v2ray", "run", "-c", "my config.json")
    assert table.arguments(411) == table.arguments(9999) == ()
    info = table.describe(321, 501)
    assert (info.name, info.path) == ("Safari", "/Applications/Safari.app/Contents/MacOS/Safari")
    assert table.describe(9999, 501).path == table.describe(None, 501).path == ""


def test_kernel_without_the_tables_is_told(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> bytes:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr("engine.darwin.system.sysctl_by_name", refuse)
    with pytest.raises(ProcessError, match="does not tell"):
        DarwinProcessTable()


@pytest.mark.parametrize("data", [b"", b"\1\0\0", b"\xff\xff\xff\xff/bin/x\0x\0", b"\2\0\0\0"])
def test_damaged_arguments_are_none(data: bytes) -> None:
    assert parse_arguments(data) in ((), ("",))

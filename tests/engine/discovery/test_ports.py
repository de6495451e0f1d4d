"""engine/discovery/ports.py: which listeners may be proxies, and in which order."""

import socket

from engine.discovery.ports import likely_ports
from engine.processes import Socket


def listener(host: str, port: int, inode: int) -> Socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return Socket(socket.inet_pton(family, host), port, bytes(4), 0, 0, inode)


def test_well_known_ports_come_in_the_order_of_the_table_before_well_known_programs() -> None:
    listeners = [
        listener("127.0.0.1", 9050, 1),
        listener("127.0.0.1", 55555, 2),
        listener("127.0.0.1", 7897, 3),
        listener("127.0.0.1", 22, 4),
        listener("127.0.0.1", 1080, 5),
    ]
    names = {2: "xray", 4: "sshd"}
    assert [port for _, port in likely_ports(listeners, names)] == [1080, 7897, 9050, 55555]


def test_each_port_is_asked_once_at_its_plainest_address() -> None:
    listeners = [
        listener("::1", 1080, 1),
        listener("127.0.0.1", 1080, 1),
        listener("::", 7890, 2),
        listener("0.0.0.0", 7891, 3),
        listener("192.168.1.5", 2080, 4),
        listener("::1", 10808, 5),
    ]
    expected = [("127.0.0.1", 1080), ("127.0.0.1", 7890), ("127.0.0.1", 7891), ("::1", 10808), ("192.168.1.5", 2080)]
    assert likely_ports(listeners, {}) == expected


def test_direct_port_of_a_proxy_program_is_left_out() -> None:
    assert likely_ports([listener("127.0.0.1", 12337, 1)], {1: "HiddifyCli"}) == []

"""engine/loop_guard/servers.py: what is a server of the proxy, and for how long. Times are seconds."""

import socket

from engine.loop_guard.servers import ASKED_FOR, ASKED_MAX, SERVERS_MAX, UNUSED_FOR, LearnedServers

SERVER, SITE = socket.inet_aton("203.0.113.10"), socket.inet_aton("198.51.100.10")


def address(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_address_that_nobody_asked_for_is_a_server_and_new_once() -> None:
    servers = LearnedServers()
    assert servers.contacted(SERVER, 0.0)
    assert not servers.contacted(SERVER, 1.0)
    assert SERVER in servers and len(servers) == 1


def test_address_that_an_application_asked_for_is_none() -> None:
    servers = LearnedServers()
    servers.asked_for(SITE, 0.0)
    assert not servers.contacted(SITE, ASKED_FOR)
    assert SITE not in servers


def test_address_asked_for_long_ago_may_be_one() -> None:
    servers = LearnedServers()
    servers.asked_for(SITE, 0.0)
    assert servers.contacted(SITE, ASKED_FOR + 1)


def test_question_that_was_none_of_an_application_is_taken_back() -> None:
    servers = LearnedServers()
    servers.asked_for(SERVER, 0.0)
    servers.retract(SERVER)
    servers.retract(SITE)
    assert servers.contacted(SERVER, 1.0)


def test_question_renews_what_was_asked_before() -> None:
    servers = LearnedServers()
    servers.asked_for(SITE, 0.0)
    servers.asked_for(SITE, ASKED_FOR)
    assert not servers.contacted(SITE, ASKED_FOR + 1)


def test_longest_forgotten_question_makes_room() -> None:
    servers = LearnedServers()
    for number in range(ASKED_MAX + 1):
        servers.asked_for(address(number), float(number))
    assert servers.contacted(address(0), float(ASKED_MAX))
    assert not servers.contacted(address(1), float(ASKED_MAX) / 100)


def test_longest_unused_servers_make_room() -> None:
    servers = LearnedServers()
    for number in range(SERVERS_MAX):
        servers.contacted(address(number), 0.0)
    assert servers.surplus() == []
    servers.contacted(address(0), 1.0)
    servers.contacted(SERVER, 2.0)
    servers.contacted(SITE, 2.0)
    assert servers.surplus() == [address(1), address(2)]
    assert len(servers) == SERVERS_MAX and address(0) in servers


def test_server_without_connection_is_one_no_more_after_a_while() -> None:
    servers = LearnedServers()
    servers.contacted(SERVER, 0.0)
    assert servers.expire([SERVER], (), UNUSED_FOR) == []
    assert servers.expire([], (), 2 * UNUSED_FOR - 1) == []
    assert servers.expire([], (), 2 * UNUSED_FOR) == [SERVER]
    assert servers.contacted(SERVER, 3 * UNUSED_FOR), "learned again"


def test_server_of_a_udp_socket_is_one_while_the_socket_lives() -> None:
    servers = LearnedServers()
    servers.contacted(SERVER, 0.0, udp_socket=7)
    assert servers.expire([], [7], UNUSED_FOR) == []
    assert servers.expire([], [8], 2 * UNUSED_FOR) == [SERVER]

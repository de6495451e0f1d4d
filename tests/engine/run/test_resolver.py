"""engine/run/resolver.py: which resolv.conf works where the machine's loopback is out of reach."""

import pytest

from engine.run.resolver import FALLBACK, nameservers, private_resolv_conf


def test_servers_that_are_no_stub_stay() -> None:
    assert (
        private_resolv_conf("search lan\nnameserver 192.168.1.1\nnameserver 2001:db8::53\n", ["198.18.0.2"], []) is None
    )


def test_stub_is_replaced_by_what_is_behind_it_and_the_rest_stays() -> None:
    text = "# a comment\n; another\nsearch lan\nnameserver 127.0.0.53\noptions edns0 trust-ad\n"
    private = private_resolv_conf(text, [], ["127.0.0.1", "192.0.2.53", "fe80::1%eth0"])
    assert private == "search lan\noptions edns0 trust-ad\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n"


@pytest.mark.parametrize("text", ["nameserver 127.0.0.1\n", "nameserver ::1\n", "", "options edns0\n"])
def test_stub_with_nothing_known_behind_it_is_replaced_by_public_servers(text: str) -> None:
    private = private_resolv_conf(text, [], [])
    assert private is not None and nameservers(private) == list(FALLBACK)


def test_stub_is_replaced_by_the_engines_own_addresses_where_it_has_any() -> None:
    private = private_resolv_conf("nameserver 127.0.0.53\n", ["198.18.0.2"], ["192.0.2.53"])
    assert private == "nameserver 198.18.0.2\n"


def test_stub_beside_a_real_server_goes_alone() -> None:
    private = private_resolv_conf("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", ["198.18.0.2"], ["192.0.2.53"])
    assert private == "nameserver 192.0.2.1\n"


def test_no_more_servers_than_glibc_reads() -> None:
    private = private_resolv_conf("nameserver 127.0.0.1\n", [], [f"192.0.2.{number}" for number in range(1, 9)])
    assert private is not None and len(nameservers(private)) == 3


def test_lines_that_name_no_address_are_passed_over() -> None:
    assert nameservers("nameserver\nnameserver here\n nameserver 192.0.2.1 # dns\ndomain lan\n") == ["192.0.2.1"]

"""networksetup and scutil."""

from engine.darwin.name_servers import (
    Resolver,
    get_servers,
    parse_resolvers,
    parse_servers,
    parse_services,
    set_servers,
)

SERVICES = """An asterisk (*) denotes that a network service is disabled.
(1) USB 10/100/1000 LAN
(Hardware Port: USB 10/100/1000 LAN, Device: en7)

(2) Wi-Fi
(Hardware Port: Wi-Fi, Device: en0)

(*) Thunderbolt Bridge
(Hardware Port: Thunderbolt Bridge, Device: bridge0)

(3) Work (VPN)
(Hardware Port: L2TP, Device: )

"""


def test_services_in_their_order() -> None:
    assert list(parse_services(SERVICES).items()) == [("USB 10/100/1000 LAN", "en7"), ("Wi-Fi", "en0")]


def test_no_services_in_what_is_no_list() -> None:
    assert parse_services("networksetup: command failed\n(Hardware Port: Wi-Fi, Device: en0)\n") == {}


def test_servers() -> None:
    assert parse_servers("192.168.1.1\n2001:db8::53\n") == ("192.168.1.1", "2001:db8::53")


def test_a_sentence_means_none() -> None:
    assert parse_servers("There aren't any DNS Servers set on Wi-Fi.\n") == ()


def test_commands() -> None:
    assert get_servers("Wi-Fi") == ("/usr/sbin/networksetup", "-getdnsservers", "Wi-Fi")
    assert set_servers("Wi-Fi", ["198.18.0.2"]) == ("/usr/sbin/networksetup", "-setdnsservers", "Wi-Fi", "198.18.0.2")
    assert set_servers("Wi-Fi", ()) == ("/usr/sbin/networksetup", "-setdnsservers", "Wi-Fi", "Empty")


SCUTIL = """DNS configuration

resolver #1
  search domain[0] : lan
  nameserver[0] : 192.168.1.1
  nameserver[1] : 2001:db8::53
  if_index : 14 (en0)
  flags    : Request A records, Request AAAA records
  reach    : 0x00020002 (Reachable,Directly Reachable Address)

resolver #2
  domain   : local
  options  : mdns
  timeout  : 5
  flags    : Request A records, Request AAAA records
  reach    : 0x00000000 (Not Reachable)
  order    : 300000

resolver #3
  domain   : corp.example.
  nameserver[0] : 10.9.0.53

DNS configuration (for scoped queries)

resolver #1
  search domain[0] : lan
  nameserver[0] : 192.168.1.1
  if_index : 14 (en0)
  flags    : Scoped, Request A records, Request AAAA records
  reach    : 0x00020002 (Reachable,Directly Reachable Address)
"""


def test_resolvers() -> None:
    assert parse_resolvers(SCUTIL) == [
        Resolver("", ("192.168.1.1", "2001:db8::53"), "en0", scoped=False),
        Resolver("local", (), "", scoped=False),
        Resolver("corp.example", ("10.9.0.53",), "", scoped=False),
        Resolver("", ("192.168.1.1",), "en0", scoped=True),
    ]


def test_no_resolvers() -> None:
    assert parse_resolvers("") == parse_resolvers("No DNS configuration available\n") == []

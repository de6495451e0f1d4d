"""engine/discovery/settings.py: what the desktops' tools print, and what it means."""

import asyncio
from collections.abc import Iterator

import pytest

from engine.discovery import Source
from engine.discovery.settings import (
    Settings,
    parse_gsettings,
    parse_kioslaverc,
    parse_pac,
    parse_scutil,
)
from tests.support.peers import tcp_server

MANUAL_SCUTIL = """<dictionary> {
  ExceptionsList : <array> {
    0 : *.local
    1 : 169.254/16
  }
  FTPPassive : 1
  HTTPEnable : 1
  HTTPPort : 1087
  HTTPProxy : 127.0.0.1
  HTTPSEnable : 0
  HTTPSPort : 9999
  HTTPSProxy : 10.0.0.1
  SOCKSEnable : 1
  SOCKSPort : 1080
  SOCKSProxy : 127.0.0.1
  __SCOPED__ : <dictionary> {
    en0 : <dictionary> {
      SOCKSEnable : 0
      SOCKSPort : 7777
    }
  }
}
"""


def urls(settings: Settings) -> list[str]:
    assert all(candidate.source is Source.SETTINGS for candidate in settings[0])
    return [str(candidate.proxy) for candidate in settings[0]]


def test_scutil_prefers_socks_and_leaves_out_what_is_switched_off() -> None:
    settings = parse_scutil(MANUAL_SCUTIL)
    assert urls(settings) == ["socks5://127.0.0.1:1080", "http://127.0.0.1:1087"]
    assert settings[0][0].origin == "SOCKS of the system settings"


@pytest.mark.parametrize("text", ["", "<dictionary> {\n}\n", "<dictionary> {\n  SOCKSEnable : 1\n}\n"])
def test_scutil_without_proxy(text: str) -> None:
    assert parse_scutil(text) == ([], [])


def test_scutil_with_a_script_of_elsewhere_is_remarked() -> None:
    text = "<dictionary> {\n  ProxyAutoConfigEnable : 1\n  ProxyAutoConfigURLString : http://wpad.example/wpad.dat\n}"
    candidates, (remark,) = parse_scutil(text)
    assert candidates == [] and "http://wpad.example/wpad.dat" in remark


GSETTINGS = """org.gnome.system.proxy autoconfig-url ''
org.gnome.system.proxy ignore-hosts ['localhost', '127.0.0.0/8', '::1']
org.gnome.system.proxy mode '{mode}'
org.gnome.system.proxy use-same-proxy true
org.gnome.system.proxy.ftp host ''
org.gnome.system.proxy.ftp port 0
org.gnome.system.proxy.http authentication-password ''
org.gnome.system.proxy.http enabled false
org.gnome.system.proxy.http host ''
org.gnome.system.proxy.http port 8080
org.gnome.system.proxy.https host '127.0.0.1'
org.gnome.system.proxy.https port 7890
org.gnome.system.proxy.socks host '::1'
org.gnome.system.proxy.socks port 7891
"""


def test_gnome_manual_leaves_out_empty_hosts() -> None:
    assert urls(parse_gsettings(GSETTINGS.format(mode="manual"))) == ["socks5://[::1]:7891", "http://127.0.0.1:7890"]


def test_gnome_without_proxy_leaves_old_hosts_alone() -> None:
    assert parse_gsettings(GSETTINGS.format(mode="none")) == ([], [])
    assert parse_gsettings("") == ([], [])


def kde(kind: int, *lines: str) -> str:
    return "\n".join(["[$Version]", "x=1", "[Proxy Settings]", f"ProxyType={kind}", *lines, ""])


def test_kde_manual_has_a_blank_before_the_port() -> None:
    text = kde(
        1,
        "httpProxy=http://127.0.0.1 8080",
        "socksProxy=socks://127.0.0.1 1080",
        "httpsProxy=http://h:3128",
        "ftpProxy=",
    )
    assert urls(parse_kioslaverc(text, {})) == ["socks5://127.0.0.1:1080", "http://h:3128", "http://127.0.0.1:8080"]


def test_kde_none_counts_for_nothing() -> None:
    assert parse_kioslaverc(kde(0, "socksProxy=socks://127.0.0.1 1080"), {}) == ([], [])


def test_kde_environment_holds_names_of_variables() -> None:
    text = kde(4, "socksProxy=MY_PROXY", "httpProxy=UNSET")
    assert urls_of_any(parse_kioslaverc(text, {"MY_PROXY": "socks5://h:1"})) == ["socks5://h:1"]


def urls_of_any(settings: Settings) -> list[str]:
    return [str(candidate.proxy) for candidate in settings[0]]


def test_kde_wpad_is_remarked() -> None:
    candidates, remarks = parse_kioslaverc(kde(3), {})
    assert candidates == [] and "WPAD" in remarks[0]


@pytest.mark.parametrize("text", ["", "no section", "[Proxy Settings", "[Other]\nProxyType=1\n"])
def test_kde_file_that_is_none(text: str) -> None:
    assert parse_kioslaverc(text, {}) == ([], [])


PAC = """
function FindProxyForURL(url, host) {
  if (dnsDomainIs(host, ".example")) return "PROXY 10.0.0.1:3128; DIRECT";
  return "SOCKS5 127.0.0.1:1080; SOCKS 127.0.0.1:1080; PROXY 127.0.0.1:1087; DIRECT";
}
"""


def test_pac_names_socks_first() -> None:
    found = [str(candidate.proxy) for candidate in parse_pac(PAC, "a script")]
    assert found == [
        "socks5://127.0.0.1:1080",
        "socks5://127.0.0.1:1080",
        "http://10.0.0.1:3128",
        "http://127.0.0.1:1087",
    ]


@pytest.fixture
def pac_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("pac") / "proxy.pac"
    path.write_text(PAC)
    yield path.as_uri()


def test_script_in_a_file_is_read(pac_file: str) -> None:
    text = GSETTINGS.format(mode="auto").replace("autoconfig-url ''", f"autoconfig-url '{pac_file}'")
    assert urls(parse_gsettings(text))[0] == "socks5://127.0.0.1:1080"


def test_script_that_this_machine_serves_is_read() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(PAC)}\r\n\r\n{PAC}".encode())
        await writer.drain()

    async def session() -> Settings:
        async with tcp_server(serve) as (host, port):
            text = f"<dictionary> {{\n ProxyAutoConfigEnable : 1\n ProxyAutoConfigURLString : http://{host}:{port}/proxy.js\n}}"
            return await asyncio.to_thread(parse_scutil, text)

    settings = asyncio.run(session())
    assert urls(settings)[0] == "socks5://127.0.0.1:1080"
    assert "/proxy.js, named by the system settings" in settings[0][0].origin


def test_script_that_cannot_be_read_is_remarked() -> None:
    candidates, (remark,) = parse_kioslaverc(kde(2, "Proxy Config Script=file:///nonexistent.pac"), {})
    assert candidates == [] and "cannot be read" in remark

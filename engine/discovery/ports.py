"""Ports and programs that are usually proxies, and which of them listen here."""

import asyncio
import socket
from ipaddress import ip_address

from engine.discovery import Candidate, Source
from engine.processes import ProcessError, ProcessTable, Socket
from shared.config import ProxyConfig

__all__ = ["PORTS", "PROGRAMS", "likely_ports", "port_candidates"]

PORTS = {
    1080: "V2RayU, shadowsocks, ssh -D",
    7897: "Clash Verge Rev",
    7890: "Clash, mihomo",
    7891: "Clash, mihomo",
    7898: "Clash Verge Rev",
    7899: "Clash Verge Rev",
    12334: "Hiddify",
    2334: "Hiddify before 2024",
    10808: "v2rayN, v2rayNG",
    10809: "v2rayN",
    2080: "NekoRay, Throne",
    2081: "NekoRay",
    20170: "v2rayA",
    20171: "v2rayA",
    20172: "v2rayA",
    20122: "GUI.for.SingBox",
    20120: "GUI.for.SingBox",
    20121: "GUI.for.SingBox",
    20112: "GUI.for.Clash",
    3067: "Karing",
    1081: "V2RayX",
    8001: "V2RayX",
    1086: "ShadowsocksX-NG",
    1087: "V2RayU, ShadowsocksX-NG",
    1089: "Qv2ray",
    8889: "Qv2ray",
    6153: "Surge",
    6152: "Surge",
    1082: "Shadowrocket",
    9050: "Tor",
    9150: "Tor Browser",
    40000: "Cloudflare WARP",
    8118: "Privoxy",
    3128: "Squid",
    8888: "tinyproxy",
    8080: "HTTP proxies",
}
"""Port -> who uses it by default, the likelier ones first (facts: the products' own sources)."""

PROGRAMS = frozenset((
    "3proxy", "brook", "clash", "clash-meta", "clash-verge", "danted", "gost", "HiddifyCli", "hysteria", "mihomo",
    "microsocks", "naive", "nekobox_core", "nekoray_core", "privoxy", "sing-box", "sockd", "squid", "ss-local", "ssh",
    "sslocal", "ssserver", "throne", "tinyproxy", "tor", "trojan", "trojan-go", "tuic-client", "v2ray", "verge-mihomo",
    "warp-svc", "wireproxy", "xray",
))  # fmt: skip
"""Names of programs whose ports are looked at whatever their number."""

NEVER = frozenset((3065, 12337))
"""Ports of such programs that do not lead to a proxy: Karing's and Hiddify's direct ones."""


def likely_ports(listeners: list[Socket], names: dict[int, str]) -> list[tuple[str, int]]:
    """Return host and port of the listeners that may be proxies, the likeliest first. `names`: inode -> program."""
    order = {port: place for place, port in enumerate(PORTS)}
    hosts: dict[tuple[int, str], None] = {}
    for sock in listeners:
        known = sock.local_port in PORTS or names.get(sock.inode) in PROGRAMS
        if known and sock.local_port not in NEVER:
            hosts[sock.local_port, _host(sock.local)] = None
    # Loopback first, IPv4 first: a program that listens at several addresses is asked at the plainest.
    ranked = sorted(hosts, key=lambda key: (order.get(key[0], len(order)), _is_other(key[1]), ":" in key[1], key))
    plainest: dict[int, str] = {}
    for port, host in ranked:
        plainest.setdefault(port, host)
    return [(host, port) for port, host in plainest.items()]


def _host(local: bytes) -> str:
    if not any(local):  # any address; a dual-stack one is asked in IPv4, which each system has
        return "127.0.0.1"
    return str(ip_address(local))


def _is_other(host: str) -> bool:
    return not ip_address(host).is_loopback


async def port_candidates(table: ProcessTable | None) -> list[Candidate]:
    """Return what may be proxies among the ports that listen here; without a table the well-known ports are tried."""
    likely: list[tuple[str, int]] = []
    if table is not None:
        try:
            listeners = table.listeners()
            holders = table.holders([sock.inode for sock in listeners])
        except ProcessError:
            table = None
        else:
            names = {inode: table.describe(holder.pid, 0).name for inode, holder in holders.items()}
            likely = likely_ports(listeners, names)
    if table is None:
        answers = await asyncio.gather(*(_listens(port) for port in PORTS))
        likely = [("127.0.0.1", port) for port, listens in zip(PORTS, answers, strict=True) if listens]
    return [
        Candidate(Source.PORT, _origin(port), ProxyConfig(kind="socks5", host=host, port=port)) for host, port in likely
    ]


def _origin(port: int) -> str:
    return f"port {port}, usual for {PORTS[port]}" if port in PORTS else f"port {port}"


async def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(0.5):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except (OSError, TimeoutError):
            return False
        return True

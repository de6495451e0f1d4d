"""Whether each proxy of a configuration answers, lets us in, and relays UDP."""

import asyncio
from collections.abc import Iterable

from engine.discovery import Access, Speech
from engine.discovery.probe import probe
from engine.doctor import Finding
from shared.config import OutboundConfig, ProxyConfig, ProxyOutbound

__all__ = ["examine_proxies"]

TIMEOUT = 5.0  # seconds for each protocol
TOGETHER_MAX = 16
"""Proxies asked at the same time."""


async def examine_proxies(outbounds: Iterable[OutboundConfig]) -> list[Finding]:
    """Connect to every proxy, and say what it speaks."""
    limit = asyncio.Semaphore(TOGETHER_MAX)

    async def one(outbound: ProxyOutbound) -> list[Finding]:
        async with limit:
            return await _examine(outbound)

    proxies = [outbound for outbound in outbounds if isinstance(outbound, ProxyOutbound)]
    found = await asyncio.gather(*map(one, proxies))
    return [finding for findings in found for finding in findings]


async def _examine(outbound: ProxyOutbound) -> list[Finding]:
    proxy = outbound.proxy
    who = f"the proxy {outbound.tag} ({proxy})" if outbound.tag != "proxy" else f"the proxy {proxy}"
    speech = await probe(proxy, timeout=TIMEOUT)
    if speech.trouble:
        return [Finding("proxy", "error", f"{who} cannot be used: {speech.trouble}", _mend(speech.trouble, proxy))]
    access = {"socks5": speech.socks5, "socks4": speech.socks4, "http": speech.http}[proxy.kind]
    if access is Access.NO:
        spoken = " and ".join(kind for kind in ("socks5", "socks4", "http") if getattr(speech, kind) is not Access.NO)
        return [
            Finding(
                "proxy",
                "error",
                f"{who} speaks {spoken}, not {proxy.kind}",
                f"write {spoken}:// in place of {proxy.kind}://",
            )
        ]
    if access is not Access.OPEN:
        return [
            Finding(
                "proxy",
                "error",
                f"{who} {access.value}",
                "give the right one: `TUNLOOM_PROXY=socks5://USER:PASSWORD@HOST:PORT`",
            )
        ]
    return [Finding("proxy", "ok", f"{who} answers and lets us in"), _udp(who, proxy, speech)]


def _udp(who: str, proxy: ProxyConfig, speech: Speech) -> Finding:
    if proxy.kind == "socks5" and speech.udp:
        return Finding("udp", "ok", f"{who} relays UDP")
    why = "does not relay UDP" if proxy.kind == "socks5" else f"speaks {proxy.kind}, which has no UDP"
    return Finding(
        "udp",
        "warning",
        f"{who} {why}: browsers fall back from QUIC to TCP, names are asked over TCP, calls and games do not work",
        'switch it on in the proxy (V2Ray: `"udp": true` in the settings of its socks inbound), or use one that has it',
    )


def _mend(trouble: str, proxy: ProxyConfig) -> str:
    local = all(address.startswith("127.") or address == "::1" for address in proxy.addresses) and proxy.addresses
    if trouble == "nobody listens there":
        return "start the proxy, or correct the port" if local else "is the port right, and the proxy running there?"
    if trouble == "speaks no protocol of proxies":
        return "another program has this port: correct it"
    return "is the address right, and can this machine reach it? A firewall may swallow the packets"

"""The kill switch: nothing leaves but into the tun, to the LAN, or from the engine itself, for as long as it is meant to be up.

One nftables table of our own, loaded in one transaction, for IPv4 and IPv6. It stays when the engine crashes, when routes
and rules have been restored and nothing else would hold traffic back; `engine stop`, `engine repair` and the end of a
later run take it away. `nft` (package nftables) does the work.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable

from engine.netconf import NetworkError
from engine.netconf.plan import KillSwitch

__all__ = ["TABLE", "admit", "close", "dismiss", "open_up", "set_local"]

TABLE = "inet tunloom"
CT_MARK = 0x74756E
"""Connections of the workers. The last packets of a connection whose socket is closed have no user any more."""
NFT_TIMEOUT = 10.0  # seconds


def close(switch: KillSwitch, local: Iterable[str], lock: int) -> None:
    """Load the table of `switch`, in the place of an earlier one of ours if there is any. `local`: prefixes of the LAN.

    `lock` is the descriptor of the journal's lock, which `nft` is lent: should we die meanwhile, the guardian waits for it.
    Raises NetworkError; then nothing is changed.
    """
    _run(f"table {TABLE} {{ }}\ndelete table {TABLE}\n{_ruleset(switch, tuple(local))}", lock)


def open_up(lock: int) -> None:
    """Remove the table; harmless when it is not there. Raises NetworkError."""
    _run(f"table {TABLE} {{ }}\ndelete table {TABLE}\n", lock)


def admit(hosts: Iterable[str], lock: int) -> None:
    """Let packets to `hosts` pass as well; harmless for those that do. Raises NetworkError."""
    _run(_elements("add", hosts), lock)


def dismiss(hosts: Iterable[str], lock: int) -> None:
    """Let packets to `hosts` pass no more; harmless for those that do not. Raises NetworkError."""
    hosts = tuple(hosts)
    _run(_elements("add", hosts) + _elements("delete", hosts), lock)


def set_local(prefixes: Iterable[str], lock: int) -> None:
    """From now on these prefixes are the LAN, in one transaction. Raises NetworkError."""
    prefixes = tuple(prefixes)
    lines = []
    for family in (4, 6):
        lines.append(f"flush set {TABLE} lan_v{family}\n")
        texts = _of_family(prefixes, family)
        if texts:
            lines.append(f"add element {TABLE} lan_v{family} {{ {', '.join(texts)} }}\n")
    _run("".join(lines), lock)


def _ruleset(switch: KillSwitch, local: tuple[str, ...]) -> str:
    own = [f"meta skuid {switch.uid} ct mark set {CT_MARK} accept"] if switch.uid is not None else []
    own += [f"meta mark {switch.mark} accept"] if switch.mark is not None else []
    # The router would carry the questions on to its provider.
    dns = (
        "meta l4proto { tcp, udp } th dport 53 counter reject with icmpx admin-prohibited"
        if switch.captures_dns
        else ""
    )
    return f"""
table {TABLE} {{
    set lan_v4 {{ type ipv4_addr; flags interval; auto-merge; {_set_elements(local, 4)} }}
    set lan_v6 {{ type ipv6_addr; flags interval; auto-merge; {_set_elements(local, 6)} }}
    set hosts_v4 {{ type ipv4_addr; {_set_elements(switch.hosts, 4)} }}
    set hosts_v6 {{ type ipv6_addr; {_set_elements(switch.hosts, 6)} }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oifname {{ "lo", "{switch.interface}" }} accept
        {"; ".join(own)}
        ct mark {CT_MARK} accept
        goto elsewhere
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{switch.interface}" accept
        oifname "{switch.interface}" accept
        goto elsewhere
    }}
    chain elsewhere {{
        ct direction reply ct state established accept comment "inbound connections, and no ICMP errors, which quote packets"
        tcp sport < 32768 tcp flags & (syn | ack) != syn accept comment "those from before, that conntrack takes for ours"
        ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} accept
        ip6 daddr {{ fe80::/10, ff00::/8 }} accept
        {dns}
        ip daddr @lan_v4 accept
        ip6 daddr @lan_v6 accept
        ip daddr @hosts_v4 accept
        ip6 daddr @hosts_v6 accept
        counter reject with icmpx admin-prohibited
    }}
}}
"""


def _set_elements(prefixes: Iterable[str], family: int) -> str:
    texts = _of_family(prefixes, family)
    return f"elements = {{ {', '.join(texts)} }}" if texts else ""


def _elements(verb: str, hosts: Iterable[str]) -> str:
    hosts = tuple(hosts)
    lines = []
    for family in (4, 6):
        texts = _of_family(hosts, family)
        if texts:
            lines.append(f"{verb} element {TABLE} hosts_v{family} {{ {', '.join(texts)} }}\n")
    return "".join(lines)


def _of_family(texts: Iterable[str], family: int) -> list[str]:
    return [text for text in texts if (":" in text) == (family == 6)]


def _run(script: str, lock: int) -> None:
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise NetworkError("The kill switch needs the program nft: install the package nftables.")
    try:
        done = subprocess.run(
            [program, "-f", "-"],
            input=script.encode(),
            capture_output=True,
            timeout=NFT_TIMEOUT,
            pass_fds=(lock,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"The kill switch cannot be set: {program}: {error}.") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        not_permitted = "not permitted" in lines[0]
        raise NetworkError(f"The kill switch cannot be set: nft says {lines[0]!r}.", not_permitted=not_permitted)

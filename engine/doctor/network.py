"""What a crash has left, who else takes routes, and what of the kernel's settings is in the way."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from engine.config.model import TunConfig
from engine.doctor import Finding
from engine.netconf.journal import has_journal
from engine.netconf.rules import RULE_COUNT
from engine.netconf.survey import Survey, survey
from engine.processes.proc import pids

__all__ = ["examine_network"]

OTHERS = {
    "sing-box": "sing-box", "mihomo": "mihomo", "verge-mihomo": "Clash Verge", "clash": "Clash", "clash-meta": "mihomo",
    "clash-verge-ser": "Clash Verge", "hiddify": "Hiddify", "HiddifyCli": "Hiddify", "tun2socks": "tun2socks",
    "hev-socks5-tunn": "hev-socks5-tunnel", "tun2proxy-bin": "tun2proxy", "xray": "Xray", "nekobox_core": "NekoBox",
    "openvpn": "OpenVPN", "tailscaled": "Tailscale", "openconnect": "OpenConnect", "warp-svc": "Cloudflare WARP",
}  # fmt: skip
"""Name of a process, 15 characters of it (proc_pid_comm(5)) -> program that may make a tun or take routes."""
TAILSCALE_TABLE = 52


def examine_network(run_dir: Path, tun: TunConfig, *, running: bool, own_interface: str | None) -> Iterator[Finding]:
    """Look at this network namespace. `running`: an engine does its work here, with the tun `own_interface`."""
    yield _leftovers(run_dir, running)
    seen = survey()
    yield from _conflicts(seen, tun, running)
    yield from _tunnels(seen, own_interface)
    yield from _rp_filter()
    yield _resolver()
    yield from _ipv6(seen, tun)
    if seen.default(4, 254) is None and seen.default(6, 254) is None:
        yield Finding(
            "uplink",
            "warning",
            "this machine has no default route: a proxy elsewhere cannot be reached",
            "connect it to a network",
        )


def _leftovers(run_dir: Path, running: bool) -> Finding:
    if running:
        return Finding("leftovers", "ok", "an engine is running, and its changes of the network are in force")
    closed = "table inet tunloom\n" in _nft_tables()
    if has_journal(run_dir):
        kept = "; its kill switch lets nothing out" if closed else ""
        return Finding(
            "leftovers",
            "error",
            f"an engine that crashed has left changes of the network ({run_dir}/network.journal){kept}",
            f"`sudo engine repair --run-dir {run_dir}`",
        )
    if closed:
        return Finding(
            "leftovers",
            "error",
            "the kill switch of an engine lets nothing out, and no journal tells of it",
            "`sudo nft delete table inet tunloom`",
        )
    return Finding("leftovers", "ok", "no crash has left anything")


def _nft_tables() -> str:
    try:
        return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _conflicts(seen: Survey, tun: TunConfig, running: bool) -> Iterator[Finding]:
    if not running:
        last = tun.priority + RULE_COUNT - 1
        for rule in seen.rules:
            if tun.priority <= rule.priority <= last:
                yield Finding(
                    "conflict",
                    "error",
                    f"another program has an IPv{rule.family} routing rule at priority {rule.priority}, where ours go "
                    "(sing-box uses the same)",
                    f"stop that program, or remove what it left: `sudo ip -{rule.family} rule del priority {rule.priority}`",
                )
    for rule in seen.rules:
        default = seen.default(rule.family, rule.table)
        if 0 < rule.priority < tun.priority and not rule.is_conditional and default is not None:
            who = "Tailscale's exit node" if rule.table == TAILSCALE_TABLE else f"the rule at priority {rule.priority}"
            yield Finding(
                "conflict",
                "error",
                f"{who} sends all IPv{rule.family} traffic to {default.interface or 'its table'} before our rules are asked",
                "`tailscale set --exit-node=`"
                if rule.table == TAILSCALE_TABLE
                else f"see `ip -{rule.family} rule`, and stop the program that made it",
            )
    for name, count in _running_programs().items():
        text = f"{name} is running ({count} processes); " if count > 1 else f"{name} is running; "
        if name == "Tailscale":
            yield Finding(
                "conflict",
                "note",
                f"{text}what its network does not hold goes to the engine",
                "nothing, unless an exit node is used",
            )
        else:
            yield Finding(
                "conflict",
                "note",
                f"{text}if it makes a tun of its own, the two take routes from each other",
                "use its SOCKS port as the proxy of the engine, and switch its TUN mode off",
            )


def _running_programs() -> dict[str, int]:
    found: dict[str, int] = {}
    for pid in pids():
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name in OTHERS:
            found[OTHERS[name]] = found.get(OTHERS[name], 0) + 1
    return found


def _tunnels(seen: Survey, own_interface: str | None) -> Iterator[Finding]:
    for tunnel in seen.tunnels:
        if tunnel.kind == "wireguard":
            yield Finding(
                "conflict",
                "note",
                f"{tunnel.name} is a WireGuard tunnel; where it takes all traffic, its rules come after ours: programs go to "
                "the proxy, and the proxy's connection goes through WireGuard",
                "nothing, if that is meant; else `wg-quick down` it",
            )
        elif tunnel.name != own_interface:
            yield Finding(
                "conflict",
                "note",
                f"{tunnel.name} is the tun of another program",
                "if that program takes all routes, stop it: two of them take routes from each other",
            )


def _rp_filter() -> Iterator[Finding]:
    everywhere = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
    if _read(everywhere).strip() == "1":
        if everywhere.is_file() and _is_read_only(everywhere):
            yield Finding(
                "rp_filter",
                "error",
                "rp_filter is 1 (strict) and /proc/sys is read-only: the kernel drops what comes out of the tun",
                "set it where the container is started: `--sysctl net.ipv4.conf.all.rp_filter=2`",
            )
        else:
            yield Finding("rp_filter", "ok", "rp_filter is 1 (strict); the engine sets 2 (loose) for its tun")
    else:
        yield Finding("rp_filter", "ok", "rp_filter lets answers come in by the tun")


def _is_read_only(path: Path) -> bool:
    try:
        with path.open("r+"):
            return False
    except OSError:
        return True


def _resolver() -> Finding:
    lines = _read(Path("/etc/resolv.conf")).splitlines()
    servers = [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]
    if not servers:
        return Finding(
            "resolver",
            "warning",
            "/etc/resolv.conf names no server: names cannot be looked up",
            "add a line such as `nameserver 9.9.9.9`",
        )
    where = ", ".join(servers)
    if all(server.startswith("127.") or server == "::1" for server in servers):
        return Finding(
            "resolver",
            "ok",
            f"names are asked of a program on this machine ({where}); its own questions go through the engine",
        )
    return Finding("resolver", "ok", f"names are asked of {where}")


def _ipv6(seen: Survey, tun: TunConfig) -> Iterator[Finding]:
    has_route = seen.default(6, 254) is not None
    tun_has_it = any(":" in address for address in tun.addresses)
    disabled = [
        _read(Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")).strip() != "0" for scope in ("all", "default")
    ]
    if not has_route:
        yield Finding("ipv6", "ok", "this machine has no IPv6 default route: nothing can leave past the tun by IPv6")
    elif not tun_has_it and not tun.strict_route:
        yield Finding(
            "ipv6",
            "warning",
            "this machine has IPv6 and the tun has no IPv6 address: IPv6 traffic leaves past the proxy",
            'give it one (`"address": [..., "fdfe:dcba:9876::1/126"]`), or write `"strict_route": true`',
        )
    elif tun_has_it and disabled[1]:
        yield Finding(
            "ipv6",
            "warning",
            "IPv6 is disabled for new interfaces (net.ipv6.conf.default.disable_ipv6) and used by others: it leaves past the tun",
            "`sudo sysctl net.ipv6.conf.default.disable_ipv6=0`",
        )
    else:
        yield Finding("ipv6", "ok", "IPv6 goes into the tun, too")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

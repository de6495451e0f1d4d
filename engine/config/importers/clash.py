"""Clash, Clash Meta (mihomo) and what is built on them (ClashX, Clash Verge, FlClash): YAML, also of 2019.

Clash goes on running: it speaks to its servers, balances its groups, and judges the rules that need its databases.
"""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from engine.config.dialect import Array, Object
from engine.config.importers.clash_providers import import_providers
from engine.config.importers.clash_rules import import_rules, name_condition
from engine.config.importers.draft import FAKEIP_TUN_ADDRESS, Draft
from engine.config.importers.tree import each, text_of, whole_number

__all__ = ["import_clash"]

_LEGACY = {"proxy": "proxies", "proxy group": "proxy-groups", "proxy-group": "proxy-groups", "rule": "rules"}
"""Keys of 2019 (`Proxy`, `Proxy Group`, `Rule`), as they are after folding."""
_READ = {
    "port", "socks-port", "mixed-port", "listeners", "authentication", "skip-auth-prefixes", "allow-lan", "bind-address", "mode",
    "ipv6", "proxies", "proxy-groups", "proxy-providers", "rules", "dns", "hosts", "tun", "rule-providers",
}  # fmt: skip
_CORE = {
    "log-level", "redir-port", "tproxy-port", "external-controller", "external-controller-tls", "external-controller-unix",
    "external-controller-pipe", "external-controller-cors", "external-controller-routing-mark", "external-doh-server",
    "external-ui", "external-ui-name", "external-ui-url", "secret", "profile", "unified-delay", "tcp-concurrent",
    "global-client-fingerprint", "global-ua", "geodata-mode", "geox-url", "geodata-loader", "geo-auto-update",
    "geo-update-interval", "geosite-matcher", "keep-alive-interval", "keep-alive-idle", "disable-keep-alive", "etag-support",
    "interface-name", "routing-mark", "experimental", "sniffer", "tunnels", "tls", "clash-for-android", "cfw-latency-url",
    "cfw-bypass", "find-process-mode", "lan-allowed-ips", "lan-disallowed-ips", "sub-rules", "ntp", "ss-config", "vmess-config",
    "tuic-server", "iptables", "script", "ebpf",
}  # fmt: skip
"""What Clash does itself, for those who come to its port and for itself."""
_NO_SERVER = {"direct", "dns", "reject", "rematch"}


def import_clash(tree: Object, draft: Draft) -> None:
    """Fill in a draft from a tree with keys in lower case."""
    for old, new in _LEGACY.items():
        if old in tree and tree.get(new) is None:
            tree.put(new, tree.pop(old), key_at=tree.key_at[old], value_at=tree.value_at[old])
    if not tree.keys() & _READ:
        draft.refuse(tree.at, "this is no configuration of Clash: it has neither a port nor proxies nor rules")
        return
    _local_port(tree, draft)
    _servers(tree, draft)
    _dns(tree, draft)
    tun = tree.get("tun")
    if isinstance(tun, Object) and tun.get("enable"):
        draft.leave(tun.at, "switch Clash's own tun off: two of them would lead each other's traffic in a circle")
    mode = text_of(tree, "mode").lower()
    if mode == "direct":
        draft.end("direct", tree.value_at["mode"])
    elif mode in ("global", "script"):
        draft.end("proxy", tree.value_at["mode"])
        if tree.get("rules"):
            draft.leave(tree.key_at["rules"], f"the rules are not carried over: the mode is {mode}")
    else:
        import_rules(tree, draft, import_providers(tree, draft))
    for key in tree:
        if key in _CORE and tree[key]:
            draft.leave(tree.key_at[key], f'"{key}" is not carried over: it belongs to Clash itself')
        elif key not in _READ | _CORE | _LEGACY.keys():
            draft.leave(tree.key_at[key], f'"{key}" is not carried over: it is not known here')


# The local port


def _local_port(tree: Object, draft: Draft) -> None:
    user, password = _credentials(tree)
    doors = []
    for key, kind in (("mixed-port", "socks"), ("socks-port", "socks"), ("port", "http")):
        port = whole_number(tree.get(key))
        if port:
            doors.append((kind, _listen(tree), port, user, password, tree.key_at[key], key))
        elif tree.get(key):
            draft.leave(tree.value_at[key], f"{key}: {tree[key]!r} is no port")
    for listener, at in each(tree, "listeners"):
        if isinstance(listener, Object) and text_of(listener, "type") in ("mixed", "socks", "http"):
            port = whole_number(listener.get("port"))
            users = [account for account, _ in each(listener, "users") if isinstance(account, Object)]
            own = (text_of(users[0], "username"), text_of(users[0], "password")) if users else ("", "")
            if port:
                kind = "http" if text_of(listener, "type") == "http" else "socks"
                doors.append(
                    (
                        kind,
                        _loopback(text_of(listener, "listen")),
                        port,
                        *own,
                        at,
                        f"the listener {text_of(listener, 'name')!r}",
                    )
                )
    for kind, server, port, name, secret, at, _ in doors[:1]:
        if 0 < port < 65536:
            draft.proxy(kind, server, port, name, secret)
        else:
            draft.refuse(at, f"{port} is no port: a port is a number from 1 to 65535")
    for *_, at, name in doors[1:]:
        draft.leave(at, f"{name} is not used: it is another door to the same proxy")
    if not doors:
        _nodes_as_outbounds(tree, draft)


def _credentials(tree: Object) -> tuple[str, str]:
    """Return the user and password that Clash asks this machine for; empty when it asks for none."""
    accounts = [str(account) for account, _ in each(tree, "authentication", split=False)]
    for prefix, _ in each(tree, "skip-auth-prefixes"):
        if str(prefix).startswith(("127.0.0.", "0.0.0.0/0")):
            return "", ""
    if not accounts:
        return "", ""
    user, _, password = accounts[0].partition(":")
    return user, password


def _listen(tree: Object) -> str:
    """Top-level ports listen on loopback, unless allow-lan gives them bind-address."""
    return _loopback(text_of(tree, "bind-address")) if tree.get("allow-lan") else "127.0.0.1"


def _loopback(listen: str) -> str:
    listen = listen.strip("[]")
    try:
        address = ip_address(listen)
    except ValueError:
        return "127.0.0.1"
    return "127.0.0.1" if address.is_unspecified else str(address)


def _nodes_as_outbounds(tree: Object, draft: Draft) -> None:
    """Without a local port, nodes that speak SOCKS5 or HTTP can be used directly; others cannot."""
    members: list[str] = []
    for node, _ in each(tree, "proxies"):
        if not isinstance(node, Object) or text_of(node, "type") not in ("socks5", "http") or node.get("tls"):
            continue
        port = whole_number(node.get("port"))
        if port is not None and 0 < port < 65536 and text_of(node, "server"):
            tag = text_of(node, "name") or f"proxy-{len(members)}"
            kind = "http" if text_of(node, "type") == "http" else "socks"
            draft.proxy(kind, text_of(node, "server"), port, text_of(node, "username"), text_of(node, "password"), tag)
            members.append(tag)
    if not members:
        draft.refuse(
            tree.at,
            "there is no local port: write mixed-port: 7890 into the file that Clash runs with, or name its port by "
            "`engine start --proxy socks5://127.0.0.1:7890`",
        )
        return
    if members != ["proxy"]:
        draft.outbounds.insert(0, {"type": "fallback", "tag": "proxy", "outbounds": members})


# Servers


def _servers(tree: Object, draft: Draft) -> None:
    for node, at in each(tree, "proxies"):
        if not isinstance(node, Object):
            draft.leave(at, "a proxy that is not a mapping is not carried over")
            continue
        found = list(each(node, "server"))
        for peer, _ in each(node, "peers"):
            if isinstance(peer, Object):
                found += list(each(peer, "server"))
        if node.get("ip"):  # tuic: the address behind the name
            found += list(each(node, "ip"))
        for server, where in found:
            draft.bypass(str(server), where)
        if not found and text_of(node, "type") not in _NO_SERVER:
            draft.leave(at, f"the proxy {text_of(node, 'name')!r} names no server that could be kept out of the tun")
    providers = tree.get("proxy-providers")
    if isinstance(providers, Object):
        for name in providers:
            draft.leave(providers.key_at[name], f"the servers of the provider {name!r} are not known here")


# DNS


def _dns(tree: Object, draft: Draft) -> None:
    dns = tree.get("dns")
    if not isinstance(dns, Object) or dns.get("enable") is False:
        if tree.get("ipv6") is False:
            draft.dns = {"strategy": "ipv4_only"}
        return
    servers: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    plain = []
    for item, at in each(dns, "nameserver", split=False):
        server = _dns_server(str(item), at, f"dns-{len(servers)}", draft)
        if server is not None:
            servers.append(server)
            plain.append(server["tag"])
    _policy(dns, servers, rules, draft)
    _hosts(tree, servers, rules, draft)
    if not plain:
        servers.insert(0, {"type": "local", "tag": "local"})
        plain = ["local"]
    if text_of(dns, "enhanced-mode").lower() == "fake-ip":
        _fake_ip(dns, servers, rules, plain[0], draft)
    draft.dns = {"servers": servers, "rules": rules, "final": plain[0]}
    if tree.get("ipv6") is False or dns.get("ipv6") is False:
        draft.dns["strategy"] = "ipv4_only"
    for tag in plain[1:]:
        draft.leave(dns.at, f'the DNS server "{tag}" is carried over, but not asked: only the first one is')
    for key in (
        "fallback",
        "fallback-filter",
        "proxy-server-nameserver",
        "direct-nameserver",
        "listen",
        "prefer-h3",
        "default-nameserver",
    ):
        if dns.get(key):
            draft.leave(dns.key_at[key], f'"{key}" is not carried over: it belongs to Clash itself')


def _dns_server(text: str, at: int, tag: str, draft: Draft) -> dict[str, Any] | None:
    """Return a DNS server of ours, or None after it was told that there is none. Without `#PROXY` Clash asks directly."""
    address, _, options = text.partition("#")
    through = [option for option in options.split("&") if option and "=" not in option]
    if address in ("system", "system://") or address.startswith("dhcp://"):
        return {"type": "local", "tag": tag}
    bracketed = address if "://" in address or address.count(":") < 2 else f"[{address.strip('[]')}]"
    try:
        parts = urlsplit(address if "://" in address else f"udp://{bracketed}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme == "rcode":
        return {
            "type": "rcode",
            "tag": tag,
            "rcode": {"success": "NOERROR", "name_error": "NXDOMAIN", "refused": "REFUSED"}.get(
                parts.netloc, "NOERROR"
            ),
        }
    if parts.scheme not in ("udp", "tcp", "tls", "https") or not host:
        draft.leave(
            at, f"the DNS server {text!r} is not carried over: only plain ones, tcp://, tls:// and https:// are"
        )
        return None
    server: dict[str, Any] = {"type": parts.scheme, "tag": tag, "server": host}
    if port is not None:
        server["server_port"] = port
    if parts.scheme == "https" and parts.path not in ("", "/", "/dns-query"):
        server["path"] = parts.path
    if through:
        server["detour"] = "proxy"
    return server


def _policy(dns: Object, servers: list[dict[str, Any]], rules: list[dict[str, Any]], draft: Draft) -> None:
    policy = dns.get("nameserver-policy")
    if not isinstance(policy, Object):
        return
    for names, value in policy.items():
        first = value[0] if isinstance(value, Array) and value else value
        conditions: dict[str, list[str]] = {}
        for name in names.split(","):
            found = name_condition(name.strip())
            if found is None:
                draft.leave(
                    policy.key_at[names], f"nameserver-policy: {name!r} is not carried over: Clash has the database"
                )
            else:
                conditions.setdefault(found[0], []).append(found[1])
        server = _dns_server(str(first), policy.value_at[names], f"dns-{len(servers)}", draft) if conditions else None
        if server is not None:
            servers.append(server)
            rules.append({**conditions, "server": server["tag"]})


def _hosts(tree: Object, servers: list[dict[str, Any]], rules: list[dict[str, Any]], draft: Draft) -> None:
    hosts = tree.get("hosts")
    if not isinstance(hosts, Object):
        return
    found: dict[str, list[str]] = {}
    for name, value in hosts.items():
        addresses = [str(text) for text in (value if isinstance(value, Array) else [value])]
        if any(character in name for character in "*+") or name.startswith(".") or not all(map(_is_address, addresses)):
            draft.leave(
                hosts.key_at[name], f"the host {name!r} is not carried over: only whole names with addresses are"
            )
        else:
            found[name] = addresses
    if found:
        servers.append({"type": "hosts", "tag": "hosts", "predefined": found})
        rules.insert(0, {"domain": sorted(found), "server": "hosts"})


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _fake_ip(dns: Object, servers: list[dict[str, Any]], rules: list[dict[str, Any]], real: str, draft: Draft) -> None:
    """Give out fake addresses as Clash does, so that names reach the proxy; those of the filter get their real ones."""
    if text_of(dns, "fake-ip-filter-mode") in ("whitelist", "rule"):
        draft.leave(dns.key_at["fake-ip-filter-mode"], "fake-ip is not carried over: only its filter mode blacklist is")
        return
    conditions: dict[str, list[str]] = {}
    for item, at in each(dns, "fake-ip-filter", split=False):
        found = name_condition(str(item))
        if found is None:
            draft.leave(at, f"fake-ip-filter: {item!r} is not carried over: Clash has the database")
        else:
            conditions.setdefault(found[0], []).append(found[1])
    if conditions:
        rules.append({**conditions, "server": real})
    rules.append({"query_type": ["A", "AAAA"], "server": "fakeip"})
    servers.append({"type": "fakeip", "tag": "fakeip", "inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"})
    draft.tun["address"] = FAKEIP_TUN_ADDRESS
    draft.experimental = {"cache_file": {"enabled": True, "store_fakeip": True}}

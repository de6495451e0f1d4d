"""V2Ray and Xray: v4, its singular keys of v2 and v3, Xray's flat settings, and jsonv5.

V2Ray goes on running. What it does itself (policy, stats, transport, reverse, balancers, rules by geosite) stays with it.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from engine.config.dialect import Array, Object
from engine.config.importers.draft import Draft, Target
from engine.config.importers.tree import each, text_of, whole_number
from engine.config.importers.v2ray_rules import import_domains, import_rules

__all__ = ["import_v2ray"]

NO_UDP = (
    "UDP is switched off in this inbound: DNS goes over TCP, other datagrams are refused at once (settings.udp: true)"
)
_LEFT = {
    "log", "policy", "stats", "api", "transport", "reverse", "fakedns", "observatory", "burstobservatory", "metrics", "geodata",
    "services", "browserforwarder", "env", "extension", "multiobservatory",
}  # fmt: skip
_READ = {
    "inbounds", "inbound", "inbounddetour", "outbounds", "outbound", "outbounddetour", "routing", "router", "dns",
    "remarks", "version", "port", "$schema", "other", "access", "error",
}  # fmt: skip
_SILENT_PROTOCOLS = {"freedom", "direct", "blackhole", "block", "dns", "loopback"}


def import_v2ray(tree: Object, draft: Draft) -> None:
    """Fill in a draft from a tree with keys in lower case."""
    if not any(key in tree for key in ("inbounds", "inbound", "inbounddetour", "outbounds", "outbound")):
        draft.refuse(tree.at, "this is no configuration of V2Ray: it has neither inbounds nor outbounds")
        return
    inbounds, outbounds = list(_items(tree, "inbound")), list(_items(tree, "outbound"))
    if inbounds and all("type" in inbound and "protocol" not in inbound for inbound, _ in inbounds):
        draft.refuse(tree.at, "this is a configuration of sing-box: use `engine import sing-box`")
        return
    tags = _import_inbounds(inbounds, draft)
    targets = _import_outbounds(outbounds, draft)
    _import_dns(tree, draft)
    import_rules(tree, tags, targets, draft)
    for key in tree:
        if key in _LEFT:
            draft.leave(tree.key_at[key], f'"{key}" is not carried over: it belongs to V2Ray itself')
        elif key not in _READ:
            draft.leave(tree.key_at[key], f'"{key}" is not carried over: it is not known here')


def _items(tree: Object, name: str) -> Iterator[tuple[Object, int]]:
    """Yield inbounds or outbounds, in the form of today and those of V2Ray 2 and 3."""
    for key in (name, f"{name}detour", f"{name}s"):
        value = tree.get(key)
        if isinstance(value, Object):
            if name == "inbound" and "port" in tree and "port" not in value:
                value.put("port", tree["port"], key_at=tree.key_at["port"], value_at=tree.value_at["port"])
            yield value, tree.value_at[key]
        elif isinstance(value, Array):
            for item, at in zip(value, value.item_at, strict=True):
                if isinstance(item, Object):
                    yield item, at


# The local port


def _import_inbounds(inbounds: list[tuple[Object, int]], draft: Draft) -> set[str]:
    """Name the local proxy; return the tags of its inbound, which rules may ask for."""
    doors = []
    for inbound, at in inbounds:
        protocol = text_of(inbound, "protocol").lower()
        if protocol not in ("socks", "http", "mixed"):
            what = f"the inbound {_name(inbound)} ({protocol or 'without protocol'})"
            draft.leave(at, f"{what} is not carried over: it is no SOCKS or HTTP proxy")
            continue
        door = _door(inbound, at, protocol, draft)
        if door is not None:
            doors.append((door, inbound, at))
    if not doors:
        draft.refuse(
            inbounds[0][1] if inbounds else 0,
            "there is no inbound of protocol socks or http with a port that could be used: add one",
        )
        return set()
    doors.sort(key=lambda door: door[0][0])  # stable: of equals the first
    (_, kind, server, port, user, password), chosen, at = doors[0]
    draft.proxy(kind, server, port, user, password)
    if kind == "socks" and not _has_udp(chosen):
        draft.leave(at, NO_UDP)
    for _, other, where in doors[1:]:
        draft.leave(where, f"the inbound {_name(other)} is not used: it is another door to the same proxy")
    return {text_of(chosen, "tag")}


def _door(inbound: Object, at: int, protocol: str, draft: Draft) -> tuple[int, str, str, int, str, str] | None:
    """Return (rank, kind, server, port, user, password); the lowest rank is the best. None: it cannot be used, which is told."""
    settings = inbound.get("settings")
    settings = settings if isinstance(settings, Object) else Object(at)
    listen = text_of(inbound, "listen")
    if listen.startswith(("/", "@", "env:")):
        draft.leave(
            inbound.value_at["listen"],
            f"the inbound {_name(inbound)} cannot be used: it listens at {listen}, which is no address",
        )
        return None
    port = whole_number(inbound.get("port"))
    if port is None or not 0 < port < 65536:
        where = inbound.value_at.get("port", at)
        shown = f"{inbound['port']!r} is no port" if "port" in inbound else "it has no port"
        draft.leave(where, f"the inbound {_name(inbound)} cannot be used: {shown}")
        return None
    stream = inbound.get("streamsettings")
    if isinstance(stream, Object) and text_of(stream, "security").lower() in ("tls", "xtls", "reality"):
        draft.leave(stream.at, f"the inbound {_name(inbound)} cannot be used: it speaks TLS")
        return None
    user, password = _account(settings, protocol)
    kind = "http" if protocol == "http" else "socks"
    rank = 2 if kind == "http" else 0 if _has_udp(inbound) else 1
    return rank, kind, _local(listen), port, user, password


def _local(listen: str) -> str:
    """Return the address at which a listener of this machine is reached."""
    listen = listen.strip("[]")
    try:
        address = ip_address(listen)
    except ValueError:
        return "127.0.0.1"
    if address.is_unspecified:
        return "127.0.0.1"
    return str(address)


def _account(settings: Object, protocol: str) -> tuple[str, str]:
    if protocol != "http" and text_of(settings, "auth") != "password" and "account" not in settings:
        return "", ""
    for account, _ in each(settings, "accounts", "users", "account"):
        if isinstance(account, Object):
            return text_of(account, "user") or text_of(account, "username"), text_of(account, "pass") or text_of(
                account, "password"
            )
    return "", ""


def _has_udp(inbound: Object) -> bool:
    settings = inbound.get("settings")
    return isinstance(settings, Object) and bool(settings.get("udp") or settings.get("udpenabled"))


def _name(item: Object) -> str:
    return f'"{text_of(item, "tag")}"' if text_of(item, "tag") else "without tag"


# Servers


def _import_outbounds(outbounds: list[tuple[Object, int]], draft: Draft) -> dict[str, Target]:
    """Keep the servers out of the tun; return where the tags lead, the first outbound under the empty tag."""
    targets: dict[str, Target] = {}
    proxies = 0
    for outbound, at in outbounds:
        protocol = text_of(outbound, "protocol").lower()
        settings = outbound.get("settings")
        settings = settings if isinstance(settings, Object) else Object(at)
        target: Target = "proxy"
        if protocol in ("freedom", "direct"):
            target = "direct" if not (text_of(settings, "redirect") or "fragment" in settings) else "proxy"
        elif protocol in ("blackhole", "block"):
            target = "reject"
        targets.setdefault("", target)
        targets.setdefault(text_of(outbound, "tag"), target)
        proxies += target == "proxy"
        if protocol not in _SILENT_PROTOCOLS:
            servers = list(_servers(settings))
            stream = outbound.get("streamsettings")
            if isinstance(stream, Object):
                servers += _download_servers(stream)
            for server, where in servers:
                draft.bypass(server, where)
            if not any(server for server, _ in servers):
                what = f"the outbound {_name(outbound)} ({protocol or 'without protocol'})"
                draft.leave(at, f"{what} names no server that could be kept out of the tun")
    if not proxies:  # it is meant as a door to where it runs, not as a list of exceptions
        targets[""] = "proxy"
    return targets


def _servers(settings: Object) -> Iterator[tuple[str, int]]:
    """Yield the addresses of vnext, servers, peers, and of flat settings."""
    if isinstance(settings.get("address"), str):
        yield settings["address"], settings.value_at["address"]
    for key in ("vnext", "servers", "server"):
        for server, at in each(settings, key):
            if isinstance(server, Object) and text_of(server, "address"):
                yield text_of(server, "address"), server.value_at.get("address", at)
    for peer, _ in each(settings, "peers"):
        if isinstance(peer, Object):
            yield text_of(peer, "endpoint").rpartition(":")[0], peer.at


def _download_servers(stream: Object) -> Iterator[tuple[str, int]]:
    """Yield the second server that Xray's xhttp may have."""
    for value in stream.values():
        download = value.get("downloadsettings") if isinstance(value, Object) else None
        if isinstance(download, Object) and text_of(download, "address"):
            yield text_of(download, "address"), download.at


# DNS


def _import_dns(tree: Object, draft: Draft) -> None:
    dns = tree.get("dns")
    if not isinstance(dns, Object) or not dns:
        return
    servers: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    plain = []
    for item, at in each(dns, "servers", "nameserver", split=False):
        options = item if isinstance(item, Object) else Object(at)
        server = _dns_server(item, at, f"dns-{len(servers)}", draft)
        if server is None:
            continue
        domains = import_domains(options, draft, "domains", "prioritizeddomain")
        if domains:
            rules.append({**domains, "server": server["tag"]})
        elif not any(key in options for key in ("domains", "prioritizeddomain")):
            plain.append(server["tag"])
        else:
            continue  # only for names that could not be carried over
        servers.append(server)
        for key in ("expectips", "expectedips", "unexpectedips", "clientip", "fakedns"):
            if key in options:
                draft.leave(options.key_at[key], f'"{key}" of a DNS server is not carried over')
    hosts = _hosts(dns, draft)
    if hosts:
        servers.append({"type": "hosts", "tag": "hosts", "predefined": hosts})
        rules.insert(0, {"domain": sorted(hosts), "server": "hosts"})
    if not servers:
        return
    if not plain:  # questions for which no server is meant go to whom they were asked
        servers.insert(0, {"type": "local", "tag": "local"})
        plain = ["local"]
    made: dict[str, Any] = {"servers": servers, "rules": rules, "final": plain[0]}
    strategy = {
        "useipv4": "ipv4_only",
        "use_ip4": "ipv4_only",
        "useip4": "ipv4_only",
        "useipv6": "ipv6_only",
        "use_ip6": "ipv6_only",
    }
    if text_of(dns, "querystrategy").lower() in strategy:
        made["strategy"] = strategy[text_of(dns, "querystrategy").lower()]
    draft.dns = made
    for key in ("clientip", "fakedns"):
        if key in dns:
            draft.leave(dns.key_at[key], f'"{key}" is not carried over')
    for tag in plain[1:]:
        draft.leave(
            dns.at, f'the DNS server "{tag}" is carried over, but not asked: only the first one without domains is'
        )


def _dns_server(item: Any, at: int, tag: str, draft: Draft) -> dict[str, Any] | None:
    """Return a DNS server of ours, or None after it was told that there is none."""
    port = None
    address = item
    if isinstance(item, Object):
        inner = item.get("address")
        port = whole_number(item.get("port"))
        if isinstance(inner, Object):  # jsonv5: {"address": {"address": "8.8.8.8", "port": 53}}
            port = whole_number(inner.get("port")) or port
            inner = inner.get("address")
        address = inner
    if not isinstance(address, str) or not address:
        draft.leave(at, "a DNS server without address is not carried over")
        return None
    if address.lower() == "localhost":
        return {"type": "local", "tag": tag}
    scheme = plus = local = path = ""
    host = named_port = None
    try:
        parts = urlsplit(address if "://" in address else f"udp://{address}")
        scheme, plus, local = parts.scheme.lower().partition("+")
        host, named_port, path = parts.hostname, parts.port, parts.path
    except ValueError:
        pass  # told below
    if scheme not in ("udp", "tcp", "https", "h2c") or not host or address.lower() in ("fakedns",):
        draft.leave(at, f"the DNS server {address!r} is not carried over: only plain ones, tcp:// and https:// are")
        return None
    server: dict[str, Any] = {"type": "https" if scheme == "h2c" else scheme, "tag": tag, "server": host}
    if named_port or port:
        server["server_port"] = named_port or port
    if scheme in ("https", "h2c") and path not in ("", "/", "/dns-query"):
        server["path"] = path
    if plus and local == "local":
        draft.bypass(host, at)
    else:
        server["detour"] = "proxy"
    return server


def _hosts(dns: Object, draft: Draft) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    hosts = dns.get("hosts")
    if isinstance(hosts, Object):
        for name, value in hosts.items():
            addresses = [text for text in (value if isinstance(value, Array) else [value]) if _is_address(text)]
            plain = name.removeprefix("full:").removeprefix("domain:")
            if addresses and ":" not in plain and not name.startswith("domain:"):
                found[plain] = addresses
            else:
                draft.leave(
                    hosts.key_at[name], f"the host {name!r} is not carried over: only whole names with addresses are"
                )
    for item, at in each(dns, "statichosts"):
        if not isinstance(item, Object):
            continue
        addresses = [text for text, _ in each(item, "ip") if _is_address(text)]
        if addresses and text_of(item, "type").lower() in ("full", ""):
            found[text_of(item, "domain")] = addresses
        else:
            draft.leave(
                at, f"the host {text_of(item, 'domain')!r} is not carried over: only whole names with addresses are"
            )
    return found


def _is_address(text: Any) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return isinstance(text, str)

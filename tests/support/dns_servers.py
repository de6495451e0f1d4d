"""DNS servers in the namespace `internet`: unbound, each with an identity of its own, and what a client's resolver is told."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.demo.service import Service
from tests.support.certificates import Certificate
from tests.support.netns import TARGET_V4, TARGET_V6, Namespace, Topology, ip, wait_until
from tests.support.upstreams import needs

__all__ = [
    "LAN_SERVER",
    "OTHER_SERVER",
    "PUBLIC_SERVER",
    "lan",
    "names_at_the_proxy",
    "public_servers",
    "unbound",
    "with_resolver",
]

PUBLIC_SERVER, OTHER_SERVER = "1.1.1.1", "9.9.9.9"
"""On the internet's lo: the server that stands in for those of a LAN, and another."""
LAN_CLIENT, LAN_SERVER = "192.168.77.2", "192.168.77.1"
"""Of a network that the client's machine has a route of its own to. Nobody answers DNS there."""

_CONFIG = """
server:
    chroot: ""
    username: ""
    directory: "{work}"
    pidfile: ""
    use-syslog: no
    verbosity: 1
    num-threads: 1
    access-control: 0.0.0.0/0 allow
    access-control: ::0/0 allow
    {options}
    local-zone: "example." static
    local-zone: "who.example." redirect
    local-data: 'who.example. 300 IN TXT "{name}"'
    local-data: "web.example. 300 IN A {v4}"
    local-data: "web.example. 300 IN AAAA {v6}"
    local-data: 'quic.example. 300 IN HTTPS 1 . alpn="h3,h2" ipv4hint={v4} ipv6hint={v6}'
    local-data: "quic.example. 300 IN A {v4}"
{many}
"""


@contextmanager
def lan(net: Topology) -> Iterator[None]:
    """Give both ends of the link an address in LAN."""
    ends = ((net.internet, LAN_SERVER, "downlink"), (net.client, LAN_CLIENT, "uplink"))
    for namespace, address, interface in ends:
        with namespace.entered():
            ip("addr", "add", f"{address}/24", "dev", interface)
    yield
    for namespace, address, interface in ends:
        with namespace.entered():
            ip("addr", "del", f"{address}/24", "dev", interface)


@contextmanager
def unbound(
    internet: Namespace,
    work: Path,
    *addresses: str,
    name: str,
    port: int = 53,
    certificate: Certificate | None = None,
    options: Sequence[str] = (),
) -> Iterator[Service]:
    """Run unbound at `addresses` (put on lo if need be); `who.example` TXT is `name`.

    With a certificate port 853 is TLS and 443 is HTTPS (/dns-query).
    """
    program = needs("unbound", "unbound")
    lines = [f"interface: {address}@{port}" for address in addresses]
    if certificate is not None:
        lines += [f'tls-service-key: "{certificate.key}"', f'tls-service-pem: "{certificate.certificate}"']
    many = "\n".join(f'    local-data: "many.example. 300 IN A 198.51.100.{n}"' for n in range(1, 201))
    config = work / f"unbound-{name}.conf"
    text = _CONFIG.format(
        work=work, name=name, v4=TARGET_V4, v6=TARGET_V6, many=many, options="\n    ".join([*lines, *options])
    )
    config.write_text(text)
    with internet.entered():
        for address in addresses:
            if f"inet {address}/" not in ip("addr", "show") and f"inet6 {address}/" not in ip("addr", "show"):
                ip("addr", "add", address, "dev", "lo")
        service = Service(f"unbound {name}", [program, "-d", "-c", str(config)])
    with service:
        wait_until(
            lambda: service.process.poll() is not None or "start of service" in service.output,
            timeout=20,
            what=f"unbound {name}",
        )
        assert service.process.poll() is None, service.output
        yield service


@contextmanager
def public_servers(internet: Namespace, work: Path) -> Iterator[None]:
    """PUBLIC_SERVER is `public`, OTHER_SERVER is `other`, the targets are `target`."""
    with ExitStack() as stack:
        for name, addresses in (
            ("public", [PUBLIC_SERVER]),
            ("other", [OTHER_SERVER]),
            ("target", [TARGET_V4, TARGET_V6]),
        ):
            stack.enter_context(unbound(internet, work, *addresses, name=name))
        yield


def with_resolver(client: Namespace, work: Path, server: str, *command: str) -> str:
    """Run a command in `client` whose resolv.conf names `server`; return its output."""
    (work / "resolv.conf").write_text(f"nameserver {server}\n")
    script = f"mount --bind '{work}/resolv.conf' /etc/resolv.conf && exec \"$@\""
    return client.run("unshare", "--mount", "sh", "-c", script, "sh", *command)


@contextmanager
def names_at_the_proxy(work: Path, *lines: str) -> Iterator[Sequence[str]]:
    """A command before that of a proxy, which then finds these names in its /etc/hosts."""
    (work / "hosts").write_text("".join(f"{line}\n" for line in lines))
    yield ("unshare", "--mount", "sh", "-c", f"mount --bind '{work}/hosts' /etc/hosts && exec \"$@\"", "sh")

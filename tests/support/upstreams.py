"""Real proxies, each started in a namespace on the addresses of `internet`, and the targets behind them.

Each is a context manager over (namespace, directory for its files) that yields the URL for --proxy.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.demo.service import Service
from tests.support.netns import PROXY_V4, PROXY_V6, TARGET_V4, TARGET_V6, Namespace, wait_until

__all__ = [
    "PASSWORD",
    "USER",
    "Upstream",
    "dante",
    "dante_socks4",
    "dante_with_password",
    "embedded",
    "microsocks",
    "needs",
    "openssh",
    "targets",
    "tinyproxy",
    "tinyproxy_process",
    "v2ray",
    "v2ray_process",
    "v2ray_without_udp",
    "vmess_client",
    "vmess_server",
]

USER, PASSWORD = "alice", "p4ss:w@rd"
CREDENTIALS = "alice:p4ss%3Aw%40rd"  # as they stand in a URL
PORT = 1080

Upstream = Callable[[Namespace, Path], AbstractContextManager[str]]


def needs(program: str, package: str) -> str:
    """Return the path of a program; without it the test is skipped, with the name of its Debian package."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"needs {program} (package {package})")
    return path


@contextmanager
def embedded(
    internet: Namespace,
    *options: str,
    host: str = PROXY_V4,
    port: int = PORT,
    password: str | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[str]:
    """The SOCKS5 server that comes with the engine: TCP, UDP, IPv4, IPv6; `password`: that of USER.

    `wrapper`: a command that runs its arguments.
    """
    literal = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    command = [*wrapper, sys.executable, "-P", "-m", "engine.demo.socks_server", "--listen", literal, *options]
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as secret:
        if password is not None:
            secret.write(password)
            command += ["--user", USER, "--password-fd", str(reading)]
        secret.close()
        with internet.entered():
            service = Service("embedded proxy", command, pass_fds=[reading])
    with service:
        service.wait_for("listening", 20)
        yield f"socks5://{literal}"


@contextmanager
def targets(internet: Namespace) -> Iterator[None]:
    """HTTP at port 80, TCP and UDP echo at port 7, on TARGET_V4 and TARGET_V6 (engine/demo/targets.py)."""
    with internet.entered():
        service = Service("targets", [sys.executable, "-P", "-m", "engine.demo.targets", TARGET_V4, TARGET_V6])
    with service:
        service.wait_for("listening", 20)
        yield


@contextmanager
def _daemon(internet: Namespace, command: list[str], *, host: str = PROXY_V4, port: int = PORT) -> Iterator[None]:
    """Run a proxy in the foreground, from when its port listens."""
    with internet.entered():
        service = Service(Path(command[0]).name, command)
    with service:
        listens = f"sport = :{port}"
        wait_until(
            lambda: service.process.poll() is not None or host in internet.run("ss", "-Hltn", listens),
            timeout=20,
            what=f"{service.name} at {host}:{port}",
        )
        assert service.process.poll() is None, service.output
        yield


def _with_own_accounts(work: Path, command: list[str]) -> list[str]:
    """Return `command` in a mount namespace with accounts of its own, USER with PASSWORD among them, and an empty /run."""
    hashed = subprocess.run(["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True).stdout
    for name, line in (
        ("passwd", f"{USER}:x:4242:4242::/:/bin/false"),
        ("shadow", f"{USER}:{hashed.strip()}:19000::::::"),
    ):
        (work / name).write_text(f"{Path('/etc', name).read_text()}{line}\n")
    script = (
        f"mount --bind '{work}/passwd' /etc/passwd && mount --bind '{work}/shadow' /etc/shadow"
        ' && mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


# dante: TCP and UDP, IPv4 and IPv6, password, SOCKS4

_DANTE = """
logoutput: stderr
internal: {host} port = {port}
external: lo
external: downlink
external.rotation: route
clientmethod: none
socksmethod: {method}
user.privileged: root
user.unprivileged: root
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
"""


@contextmanager
def dante(internet: Namespace, work: Path) -> Iterator[str]:
    """Dante without authentication."""
    with _dante(internet, work, "none"):
        yield f"socks5://{PROXY_V4}:{PORT}"


@contextmanager
def dante_with_password(internet: Namespace, work: Path) -> Iterator[str]:
    """Dante with a user name and a password (RFC 1929)."""
    with _dante(internet, work, "username"):
        yield f"socks5://{CREDENTIALS}@{PROXY_V4}:{PORT}"


@contextmanager
def dante_socks4(internet: Namespace, work: Path) -> Iterator[str]:
    """Dante, spoken to in SOCKS4: IPv4 only, no UDP."""
    with _dante(internet, work, "none"):
        yield f"socks4://{PROXY_V4}:{PORT}"


def _dante(internet: Namespace, work: Path, method: str) -> AbstractContextManager[None]:
    config = work / "danted.conf"
    config.write_text(_DANTE.format(host=PROXY_V4, port=PORT, method=method))
    command = [needs("danted", "dante-server"), "-f", str(config), "-p", str(work / "danted.pid")]
    return _daemon(internet, _with_own_accounts(work, command))


@contextmanager
def microsocks(
    internet: Namespace, work: Path, *, host: str = PROXY_V4, port: int = PORT, open_to_all: bool = False, uid: int = 0
) -> Iterator[str]:
    """Microsocks with a password unless `open_to_all`: IPv4 and IPv6, no UDP. It runs as `uid`."""
    command = [needs("microsocks", "microsocks"), "-i", host, "-p", str(port)]
    if not open_to_all:
        command += ["-u", USER, "-P", PASSWORD]
    if uid:
        command = [needs("setpriv", "util-linux"), "--reuid", str(uid), "--clear-groups", *command]
    with _daemon(internet, command, host=host, port=port):
        yield f"socks5://{'' if open_to_all else f'{CREDENTIALS}@'}{host}:{port}"


# ssh -D: no UDP

_SSHD = """
Port 2222
ListenAddress 127.0.0.1
HostKey {work}/host_key
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
AuthorizedKeysFile {work}/user_key.pub
"""


@contextmanager
def openssh(internet: Namespace, work: Path) -> Iterator[str]:
    """`ssh -D`, with a server and keys of its own."""
    sshd, ssh = needs("sshd", "openssh-server"), needs("ssh", "openssh-client")
    for name in "host_key", "user_key":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)], check=True)
    config = work / "sshd_config"
    config.write_text(_SSHD.format(work=work))
    server = _with_own_accounts(work, [sshd, "-D", "-e", "-f", str(config)])
    client = [
        *(ssh, "-N", "-D", f"{PROXY_V4}:{PORT}", "-p", "2222", "-i", str(work / "user_key"), "-F", "none"),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1"),
    ]
    with _daemon(internet, server, host="127.0.0.1", port=2222), _daemon(internet, client):
        yield f"socks5://{PROXY_V4}:{PORT}"


@contextmanager
def v2ray(internet: Namespace, work: Path, *, host: str = PROXY_V4, port: int = PORT) -> Iterator[str]:
    """V2Ray with a socks inbound that relays UDP. It says that a connection succeeded before it has tried."""
    with _v2ray(internet, work, udp=True, host=host, port=port):
        yield f"socks5://{host}:{port}"


@contextmanager
def v2ray_without_udp(internet: Namespace, work: Path) -> Iterator[str]:
    """V2Ray as it is by default: no UDP."""
    with _v2ray(internet, work, udp=False):
        yield f"socks5://{PROXY_V4}:{PORT}"


def _v2ray(
    internet: Namespace, work: Path, *, udp: bool, host: str = PROXY_V4, port: int = PORT
) -> AbstractContextManager[None]:
    settings = {"auth": "noauth", "udp": udp, "ip": host}
    inbound = {"listen": host, "port": port, "protocol": "socks", "settings": settings}
    return v2ray_process(internet, work, inbound, {"protocol": "freedom"}, host=host, port=port)


VMESS_ID = "b831381d-6324-4d53-ad4f-8cda48b30811"


@contextmanager
def vmess_server(internet: Namespace, work: Path, *, host: str, port: int = 8443) -> Iterator[None]:
    """What V2Ray clients connect to."""
    inbound = {
        "listen": host,
        "port": port,
        "protocol": "vmess",
        "settings": {"clients": [{"id": VMESS_ID, "alterId": 0}]},
    }
    with v2ray_process(internet, work, inbound, {"protocol": "freedom"}, host=host, port=port):
        yield


def vmess_client(
    client: Namespace,
    work: Path,
    *,
    server: str,
    server_port: int = 8443,
    host: str = "127.0.0.1",
    port: int = PORT,
    wrapper: Sequence[str] = (),
) -> AbstractContextManager[None]:
    """V2Ray as on a user's machine: SOCKS on loopback, everything to the server. `wrapper`: runs the command behind it."""
    settings = {"auth": "noauth", "udp": True, "ip": host}
    inbound = {"listen": host, "port": port, "protocol": "socks", "settings": settings}
    user = {"id": VMESS_ID, "alterId": 0, "security": "auto"}
    vnext = [{"address": server, "port": server_port, "users": [user]}]
    outbound = {"protocol": "vmess", "settings": {"vnext": vnext}}
    return v2ray_process(client, work, inbound, outbound, host=host, port=port, wrapper=wrapper)


def v2ray_process(
    namespace: Namespace,
    work: Path,
    inbound: dict[str, Any],
    *outbounds: dict[str, Any],
    host: str,
    port: int,
    wrapper: Sequence[str] = (),
) -> AbstractContextManager[None]:
    """V2Ray with one inbound; the first outbound is the default."""
    config = {"log": {"loglevel": "warning"}, "inbounds": [inbound], "outbounds": outbounds}
    path = work / f"v2ray-{host}-{port}.json"
    path.write_bytes(msgspec.json.encode(config))
    return _daemon(namespace, [*wrapper, needs("v2ray", "v2ray"), "-config", str(path)], host=host, port=port)


_TINYPROXY = """
Port {port}
Listen {host}
Timeout 60
LogLevel Warning
BasicAuth {user} {password}
"""


@contextmanager
def tinyproxy(internet: Namespace, work: Path) -> Iterator[str]:
    """Tinyproxy: HTTP CONNECT with a password; no UDP."""
    config = work / "tinyproxy.conf"
    config.write_text(_TINYPROXY.format(host=PROXY_V4, port=8888, user=USER, password="secret"))
    with tinyproxy_process(internet, config, host=PROXY_V4):
        yield f"http://{USER}:secret@{PROXY_V4}:8888"


def tinyproxy_process(
    namespace: Namespace, config: Path, *, host: str = "127.0.0.1", port: int = 8888
) -> AbstractContextManager[None]:
    """Tinyproxy with a configuration that says so."""
    return _daemon(namespace, [needs("tinyproxy", "tinyproxy-bin"), "-d", "-c", str(config)], host=host, port=port)


def over_ipv6(internet: Namespace, work: Path) -> AbstractContextManager[str]:
    """The embedded proxy at its IPv6 address."""
    return embedded(internet, host=PROXY_V6)

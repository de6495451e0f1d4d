"""Network namespaces for tests: made, filled, compared and removed by the test itself.

    namespace `client`                                   namespace `internet`
    apps + tun                                           proxies at 192.0.2.1, 2001:db8:1::1; on lo the targets
    192.0.2.2/24      uplink ══ veth ══ downlink         192.0.2.1/24        203.0.113.10, 198.51.100.10
    2001:db8:1::2/64                                     2001:db8:1::1/64    2001:db8::10
    default routes via the internet end

No packet leaves the two. `Topology.refuse_direct` lets the internet drop, and count, whatever the client sends past the proxy.
"""

import ctypes
import itertools
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAG_VARIABLE = "TUNLOOM_TEST"
"""Environment variable that every process started by a test carries, whoever starts it."""

CLIENT_V4, CLIENT_V6 = "192.0.2.2", "2001:db8:1::2"
PROXY_V4, PROXY_V6 = "192.0.2.1", "2001:db8:1::1"
TARGET_V4, OTHER_TARGET_V4, TARGET_V6 = "203.0.113.10", "198.51.100.10", "2001:db8::10"

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_NAMESPACES = Path("/run/netns")
_PREFIX = "tl-"
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def ip(*arguments: str) -> str:
    """Run the command `ip` in the namespace of the caller; return its output."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], bool], timeout: float = 10.0, *, what: str = "the condition") -> None:
    """Look until `condition` holds. Raises AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout:g} seconds"
        time.sleep(0.01)


class Namespace:
    """A network namespace that `namespace` has made."""

    def __init__(self, name: str) -> None:
        self.name = name

    def command(self, *arguments: str) -> list[str]:
        """Return the argument list that runs `arguments` inside."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(self, *arguments: str, input: str | None = None) -> str:
        """Run a command inside to its end; return its output. Raises CalledProcessError, with its errors shown."""
        done = subprocess.run(self.command(*arguments), input=input, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr or done.stdout}"
        return done.stdout

    @contextmanager
    def process(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command inside (options as of Popen); on the way out it is asked to end, and killed if it does not."""
        # `ip netns exec` replaces itself by the command, so the pid is the command's.
        with subprocess.Popen(self.command(*arguments), **options) as process:
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread inside: sockets and devices opened, and processes started here, belong to it for good."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(_NAMESPACES / self.name, os.O_RDONLY)
        try:
            _enter(inside)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(inside)
            os.close(home)

    def route_to(self, destination: str, *selectors: str) -> dict[str, Any]:
        """Return what `ip route get` says of a destination, with selectors such as `from 192.0.2.2` or `uid 990`."""
        (answer,) = json.loads(self.run("ip", "-j", "route", "get", destination, *selectors))
        assert isinstance(answer, dict)
        return answer

    def snapshot(self) -> dict[str, Any]:
        """Return everything that a run of the engine could change here, to be compared before and after."""
        queries = {
            "links": ("link",),
            "addresses": ("addr",),
            "rules v4": ("-4", "rule"),
            "rules v6": ("-6", "rule"),
            "routes v4": ("-4", "route", "show", "table", "all"),
            "routes v6": ("-6", "route", "show", "table", "all"),
        }
        state: dict[str, Any] = {}
        with self.entered():
            for what, query in queries.items():
                state[what] = [_steady(entry) for entry in json.loads(ip("-j", *query) or "[]")]
            state["nft"] = subprocess.run(["nft", "-s", "list", "ruleset"], capture_output=True, text=True).stdout
            # /proc/sys/net shows the namespace of the thread that reads it.
            state["sysctl"] = {str(path): value for path in _parameters() if (value := _value(path)) is not None}
        state["resolver"] = Path("/etc/resolv.conf").read_bytes()
        return state


def _steady(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the kernel settles in its own time: a link's state (up to a second), and its first queue."""
    entry = {key: value for key, value in entry.items() if key not in ("operstate", "qdisc")}
    if "ifname" in entry:
        entry["flags"] = [flag for flag in entry["flags"] if flag != "NO-CARRIER"]
    return entry


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:  # os.setns is new in Python 3.12
        raise OSError(ctypes.get_errno(), "setns")


def _parameters() -> list[Path]:
    """All that can be read of the interfaces and of the namespace itself."""
    net = Path("/proc/sys/net")
    found = [*net.glob("ipv4/*"), *net.glob("ipv6/*")]
    for interface in net.glob("ipv[46]/conf/*"):
        with suppress(FileNotFoundError):  # it has gone meanwhile
            found += interface.iterdir()
    return sorted(path for path in found if path.name not in _UNREADABLE and path.is_file())


def _value(path: Path) -> str | None:
    """Of a kernel parameter; None when its interface has gone meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return None


_UNREADABLE = ("stable_secret", "route_flush", "flush", "tcp_fastopen_key")


@contextmanager
def namespace(role: str) -> Iterator[Namespace]:
    """Make a namespace with lo up and IPv6 addresses usable at once; remove it on the way out."""
    made = Namespace(f"{_PREFIX}{os.getpid()}-{next(_numbers)}-{role}")
    ip("netns", "add", made.name)
    try:
        with made.entered():
            for scope in ("all", "default"):
                for parameter in ("accept_dad", "accept_ra"):
                    Path(f"/proc/sys/net/ipv6/conf/{scope}/{parameter}").write_text("0")
            ip("link", "set", "lo", "up")
        yield made
    finally:
        ip("netns", "del", made.name)


@dataclass(frozen=True)
class Topology:
    """The picture at the top of this module."""

    client: Namespace
    internet: Namespace

    def refuse_direct(self) -> None:
        """From now on the internet drops whatever the client does not send to the proxy's addresses."""
        self.internet.run("nft", "-f", "-", input=_REFUSE_DIRECT)

    def direct_packets(self) -> int:
        """Return how many packets were dropped since `refuse_direct`: each one is a leak."""
        answer = json.loads(self.internet.run("nft", "-j", "list", "counter", "inet", "tunloom_test", "direct"))
        return next(int(entry["counter"]["packets"]) for entry in answer["nftables"] if "counter" in entry)


_REFUSE_DIRECT = f"""
table inet tunloom_test {{
    counter direct {{ }}
    chain from_client {{
        type filter hook prerouting priority filter; policy accept;
        iifname != "downlink" accept
        ip daddr {{ {PROXY_V4}, 224.0.0.0/4 }} accept
        ip6 daddr {{ {PROXY_V6}, fe80::/10, ff00::/8 }} accept comment "neighbour discovery among them"
        counter name direct drop
    }}
}}
"""


@contextmanager
def topology() -> Iterator[Topology]:
    """Make `client` and `internet`, joined by a veth pair.

    Link-local addresses, which neighbour discovery needs, are given by hand: the kernel's own come when they like.
    """
    with namespace("client") as client, namespace("internet") as internet:
        made = f"link add uplink netns {client.name} type veth peer name downlink netns {internet.name}"
        ip(*made.split())
        with internet.entered():
            _address("downlink", f"{PROXY_V4}/24", f"{PROXY_V6}/64", "fe80::1/64")
            _address("lo", f"{TARGET_V4}/32", f"{OTHER_TARGET_V4}/32", f"{TARGET_V6}/128")
            ip("link", "set", "downlink", "addrgenmode", "none", "up")
        with client.entered():
            _address("uplink", f"{CLIENT_V4}/24", f"{CLIENT_V6}/64", "fe80::2/64")
            ip("link", "set", "uplink", "addrgenmode", "none", "up")
            ip("-4", "route", "add", "default", "via", PROXY_V4)
            ip("-6", "route", "add", "default", "via", PROXY_V6)
            wait_until(lambda: _is_up("uplink"), what="the kernel's own routes of the link")
        yield Topology(client, internet)


def _is_up(interface: str) -> bool:
    """Whether the kernel has made all of its IPv6 routes, which it does once the other end is up."""
    routes = ip("-6", "route", "show", "table", "local", "dev", interface)
    return all(route in routes for route in ("local fe80::2", f"local {CLIENT_V6}", "multicast ff00::/8"))


def _address(interface: str, *addresses: str) -> None:
    for address in addresses:
        nodad = ["nodad"] if ":" in address else []
        ip("addr", "add", address, "dev", interface, *nodad)


class LeakCheck:
    """Notes what is there when it is made; `leaks` then tells what a test has left behind."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._namespaces = _namespaces()
        self._shared_memory = _shared_memory()
        self._own_pools = _pools(os.getpid())
        self._rules = _rules()

    def leaks(self) -> list[str]:
        """Return a line for each namespace, process, packet pool, shared-memory file and rule that was not there before."""
        return [
            *(f"namespace {name}" for name in _namespaces() - self._namespaces),
            *(f"process {pid}: {_command_line(pid)}" for pid in self._processes()),
            *(f"packet pool of the test itself: fd {fd}" for fd in _pools(os.getpid()) - self._own_pools),
            *(f"/dev/shm/{name}" for name in _shared_memory() - self._shared_memory),
            *(f"routing rule of the machine: {rule}" for rule in _rules() - self._rules),
        ]

    def _processes(self) -> list[int]:
        mark = f"{TAG_VARIABLE}={self.tag}".encode()
        return [pid for pid in _pids() if pid != os.getpid() and mark in _environment(pid)]

    def kill(self) -> None:
        """End the processes left behind, so that they do not trouble the next test."""
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Tag every process that the body starts. Raises AssertionError when it leaves something behind (LeakCheck)."""
    outer = os.environ.get(TAG_VARIABLE)
    os.environ[TAG_VARIABLE] = tag = uuid.uuid4().hex
    check = LeakCheck(tag)
    try:
        yield
    finally:
        del os.environ[TAG_VARIABLE]
        if outer is not None:
            os.environ[TAG_VARIABLE] = outer
    try:
        # A process that was told to end may need a moment.
        wait_until(lambda: not check.leaks(), timeout=5, what="the end of everything the test started")
    except AssertionError:
        left = check.leaks()
        check.kill()
        raise AssertionError("left behind: " + "; ".join(left)) from None


def _rules() -> set[str]:
    """Routing rules of the namespace that the tests run in: no test has any business there."""
    return {*ip("-4", "rule").splitlines(), *ip("-6", "rule").splitlines()}


def _namespaces() -> set[str]:
    mine = f"{_PREFIX}{os.getpid()}-"
    return {path.name for path in _NAMESPACES.glob(f"{mine}*")} if _NAMESPACES.exists() else set()


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "?"


def _pools(pid: int) -> set[int]:
    """Descriptors of packet pools (shared/pool.py) that a process holds."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed meanwhile, such as the descriptor of this listing
        if "memfd:tunloom-pool" in target:
            found.add(int(name))
    return found

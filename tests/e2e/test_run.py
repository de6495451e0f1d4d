"""`engine run`: one command goes to the proxy, the machine's network stays as it is, and nothing is left."""

import errno
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.dns_servers import PUBLIC_SERVER, unbound
from tests.support.engine import ENGINE, running_engine
from tests.support.netns import TAG_VARIABLE, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.upstreams import embedded, microsocks, needs, targets

pytestmark = pytest.mark.e2e

LOCAL = "127.0.0.1"
PROXY = f"socks5://{LOCAL}:1080"
PAGE = hashlib.sha256(b"/page").hexdigest()
TIMEOUT = 60.0

ASK_UDP = f"""
import socket
for family, host in (socket.AF_INET, "{TARGET_V4}"), (socket.AF_INET6, "{TARGET_V6}"):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect((host, 7))
        sock.send(b"hello")
        print(sock.recv(100).decode())
"""


@pytest.fixture
def local_proxy(net: Topology) -> Iterator[None]:
    """The embedded proxy on the client's loopback, and the targets."""
    with targets(net.internet), embedded(net.client, host=LOCAL):
        yield


def run_command(net: Topology, *command: str, options: tuple[str, ...] = ("--proxy", PROXY)) -> list[str]:
    return net.client.command(*ENGINE, "run", "--workers", "1", *options, "--", *command)


def run(
    net: Topology, *command: str, options: tuple[str, ...] = ("--proxy", PROXY)
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        run_command(net, *command, options=options),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def running(net: Topology, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command that prints a line when it has begun."""
    with subprocess.Popen(
        run_command(net, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def run_dirs() -> set[str]:
    return {name for name in os.listdir("/run") if name.startswith("tunloom-run-")}


@pytest.mark.usefixtures("local_proxy")
def test_command_reaches_tcp_and_udp_through_a_proxy_of_the_machines_loopback(net: Topology) -> None:
    before, directories = net.client.snapshot(), run_dirs()
    curl = needs("curl", "curl")
    fetch = f"{curl} -sS --max-time 20 http://{TARGET_V4}/page && {curl} -sS --max-time 20 http://[{TARGET_V6}]/page"
    done = run(net, "sh", "-c", fetch)
    assert (done.returncode, done.stdout, done.stderr) == (0, PAGE + PAGE, "")
    assert run(net, sys.executable, "-c", ASK_UDP).stdout == "hello\nhello\n"
    assert net.client.snapshot() == before
    assert run_dirs() == directories


@pytest.mark.usefixtures("local_proxy")
def test_others_do_not_notice(net: Topology) -> None:
    before = net.client.snapshot()
    with running(net, "sh", "-c", "echo begun; read line") as process:
        during = net.client.snapshot()
        assert net.client.route_to(TARGET_V4)["dev"] == "uplink"
        process.communicate("go on\n", timeout=TIMEOUT)
    assert before == during


def test_everything_of_the_command_goes_to_the_proxy(net: Topology, tmp_path: Path) -> None:
    with targets(net.internet), microsocks(net.internet, tmp_path) as url:
        net.refuse_direct()
        curl = needs("curl", "curl")
        fetched = run(net, curl, "-sS", "--max-time", "20", f"http://{TARGET_V4}/page", options=("--proxy", url))
        assert fetched.stdout == PAGE
        # A proxy without UDP: refused, and not sent past it.
        assert "ConnectionRefusedError" in errors_of(net, sys.executable, "-c", ASK_UDP, options=("--proxy", url))
        assert net.direct_packets() == 0


def errors_of(net: Topology, *command: str, options: tuple[str, ...]) -> str:
    """What a command that fails says."""
    done = subprocess.run(run_command(net, *command, options=options), capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.usefixtures("local_proxy")
def test_configuration_file_decides_where_the_command_goes(net: Topology, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        """{
            "inbounds": [{"type": "tun", "address": ["172.19.0.1/30"]}],
            "outbounds": [{"type": "socks", "tag": "proxy", "server": "127.0.0.1", "server_port": 1080}],
            "route": {"rules": [{"port": 7, "action": "reject"}], "final": "proxy"},
        }"""
    )
    script = f"ip -o addr show dev tun0; {needs('curl', 'curl')} -sS --max-time 20 http://{TARGET_V4}/page"
    done = run(net, "sh", "-c", script, options=("-c", str(config)))
    assert "172.19.0.1/30" in done.stdout and done.stdout.endswith(PAGE), done.stderr
    assert "ConnectionRefusedError" in errors_of(net, sys.executable, "-c", ASK_UDP, options=("-c", str(config)))


@pytest.mark.usefixtures("local_proxy")
@pytest.mark.parametrize("rule", [{"process_name": "curl"}, {"user_id": 0}], ids=lambda rule: next(iter(rule)))
def test_rules_see_the_programs_of_the_command(net: Topology, tmp_path: Path, rule: dict[str, object]) -> None:
    config = tmp_path / "config.json"
    outbound = {"type": "socks", "tag": "proxy", "server": LOCAL, "server_port": 1080}
    route = {"rules": [{**rule, "action": "reject"}], "final": "proxy"}
    config.write_text(json.dumps({"outbounds": [outbound], "route": route}))
    curl = f"{needs('curl', 'curl')} -sS --max-time 20 http://{TARGET_V4}/page"
    page = f"{sys.executable} -c 'import urllib.request; print(urllib.request.urlopen(\"http://{TARGET_V4}/page\").read())'"
    done = subprocess.run(
        run_command(net, "sh", "-c", f"{curl}; {page}", options=("-c", str(config))),
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert "Couldn't connect to server" in done.stderr
    assert (PAGE in done.stdout) is ("process_name" in rule), done.stderr


@pytest.mark.usefixtures("local_proxy")
class TestExitCode:
    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (("true",), 0),
            (("sh", "-c", "exit 7"), 7),
            (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
            (("/nonexistent/program",), 127),
            (("no-such-program",), 127),
            (("/etc/passwd",), 126),
        ],
    )
    def test_is_that_of_the_command(self, net: Topology, command: tuple[str, ...], code: int) -> None:
        done = run(net, *command)
        assert done.returncode == code
        if code in (126, 127):
            reason = os.strerror(errno.ENOENT if code == 127 else errno.EACCES)
            assert done.stderr == f"engine: {command[0]}: {reason}\n"

    def test_of_usage_is_2(self, net: Topology) -> None:
        for options in ("--proxy", "ftp://h:1"), ("--proxy", PROXY, "--user", "no-such-user"), ("-c", "/nonexistent"):
            done = run(net, "true", options=options)
            assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("engine: ")

    def test_of_no_command_is_2(self, net: Topology) -> None:
        command = net.client.command(*ENGINE, "run", "--proxy", PROXY)
        assert subprocess.run(command, capture_output=True, timeout=TIMEOUT).returncode == 2


TRAP = "trap 'echo got TERM; exit 3' TERM; trap 'echo got INT; exit 4' INT; echo begun; while :; do sleep 0.05; done"


@pytest.mark.usefixtures("local_proxy")
class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 4)])
    def test_sent_to_us_reach_the_command(self, net: Topology, number: signal.Signals, code: int) -> None:
        with running(net, "sh", "-c", TRAP) as process:
            process.send_signal(number)
            output, errors = process.communicate(timeout=TIMEOUT)
            assert (process.returncode, output, errors) == (code, f"got {number.name[3:]}\n", "")

    def test_of_the_terminal_reach_the_command_once(self, net: Topology) -> None:
        count = "n=0; trap 'n=$((n+1))' INT; echo begun; read line; read line; echo $n times; exit 5"
        pid, terminal = pty.fork()
        if pid == 0:
            arguments = run_command(net, "sh", "-c", count)
            os.execvp(arguments[0], arguments)
        try:
            seen = b""

            def shown(text: bytes) -> bool:
                nonlocal seen
                try:
                    seen += os.read(terminal, 4096)
                except OSError:  # the other end is closed
                    pass
                return text in seen

            os.set_blocking(terminal, False)
            wait_until(lambda: shown(b"begun"), TIMEOUT)
            os.write(terminal, b"\x03")
            wait_until(lambda: shown(b"^C"), TIMEOUT)
            os.write(terminal, b"a\nb\n")
            wait_until(lambda: shown(b"1 times"), TIMEOUT)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        finally:
            os.close(terminal)


@pytest.mark.usefixtures("local_proxy")
class TestEnd:
    def test_killed_it_leaves_nothing(self, net: Topology) -> None:
        """The check for what tests leave behind looks for processes and namespaces."""
        directories = run_dirs()
        namespaces = network_namespaces()
        with running(net, "sh", "-c", "echo begun; sleep 1000 & sleep 1000") as process:
            assert len(network_namespaces() - namespaces) == 1
            process.kill()
            process.wait()
            wait_until(lambda: network_namespaces() == namespaces, what="the end of the namespace")
            wait_until(lambda: run_dirs() == directories, what="the end of the run directory")

    def test_what_the_command_leaves_behind_is_ended(self, net: Topology) -> None:
        namespaces = network_namespaces()
        done = run(net, "sh", "-c", "nohup sleep 1000 >/dev/null 2>&1 & exit 6")
        assert done.returncode == 6
        assert "ended what the command has left behind: " in done.stderr
        assert network_namespaces() == namespaces

    def test_engine_that_dies_is_told_and_lets_nothing_past(self, net: Topology) -> None:
        curl = needs("curl", "curl")
        script = f"echo begun; read line; {curl} -s --max-time 2 http://{TARGET_V4}/page; echo curl: $?; exit 8"
        with running(net, "sh", "-c", script) as process:
            (master,) = [pid for pid in children(process.pid) if namespace(pid) == namespace(process.pid)]
            os.kill(master, signal.SIGKILL)
            assert process.stderr is not None
            assert "the engine has ended" in process.stderr.readline()
            output, _ = process.communicate("go on\n", timeout=TIMEOUT)
            assert process.returncode == 8
            assert output.startswith("curl: ") and PAGE not in output and "curl: 0" not in output


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def namespace(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def network_namespaces() -> set[int]:
    """Those that processes of this test are in."""
    mark = f"{TAG_VARIABLE}={os.environ[TAG_VARIABLE]}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.add(namespace(int(name)))
            except OSError:
                continue
    return found


@pytest.mark.usefixtures("local_proxy")
def test_stub_resolver_is_replaced_for_the_command_alone(net: Topology, tmp_path: Path) -> None:
    stub = tmp_path / "resolv.conf"
    stub.write_text("search lan\nnameserver 127.0.0.53\n")
    inner = run_command(net, "cat", "/etc/resolv.conf")
    script = f'mount --bind {stub} /etc/resolv.conf && "$@" && cat /etc/resolv.conf'
    shown = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *inner], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert shown.stdout == "search lan\nnameserver 198.18.0.2\nnameserver fdfe:dcba:9876::2\n" + stub.read_text()


@pytest.mark.usefixtures("local_proxy")
def test_names_are_found_through_the_proxy(net: Topology, tmp_path: Path) -> None:
    """The machine's resolver is a stub on loopback, which the command cannot reach."""
    stub = tmp_path / "resolv.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    inner = run_command(net, needs("curl", "curl"), "-sS", "--max-time", "30", "http://web.example/page")
    private = ["unshare", "--mount", "sh", "-c", f"mount --bind '{stub}' /etc/resolv.conf && exec \"$@\"", "sh"]
    with unbound(net.internet, tmp_path, PUBLIC_SERVER, name="public"):
        done = subprocess.run([*private, *inner], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == (PAGE, "")


@pytest.mark.usefixtures("local_proxy")
def test_two_at_a_time_beside_an_engine_of_the_machine(net: Topology, run_dir: Path) -> None:
    curl = needs("curl", "curl")
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url) as engine,
        running(net, "sh", "-c", f"echo begun; read line; {curl} -sS --max-time 20 http://{TARGET_V4}/page") as other,
    ):
        before = sum(worker.tcp_opened for worker in engine.status().workers)
        assert run(net, curl, "-sS", "--max-time", "20", f"http://{TARGET_V4}/page").stdout == PAGE
        assert other.communicate("go on\n", timeout=TIMEOUT)[0] == PAGE
        # The local proxy's own connections do go through the machine's engine; the workers' do not.
        assert sum(worker.tcp_opened for worker in engine.status().workers) - before == 2


@pytest.mark.usefixtures("local_proxy")
def test_command_of_another_user(net: Topology) -> None:
    done = run(net, "sh", "-c", "id -un; echo $HOME; id -Gn", options=("--proxy", PROXY, "--user", "nobody"))
    assert done.stdout.splitlines()[0] == "nobody"
    assert done.stdout.splitlines()[1] != os.environ["HOME"]


# The interpreter may stand in root's home directory, so the right to read files is kept.
ROOTLESS_SETUP = """
mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200
kept=-all,+dac_override,+dac_read_search
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=$kept --ambient-caps=$kept "$@"
"""


@pytest.mark.usefixtures("local_proxy")
def test_ordinary_user_needs_no_root(net: Topology) -> None:
    """Where /dev/net/tun is open to all, as udev makes it."""
    needs("setpriv", "util-linux")
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("needs user namespaces")
    curl = needs("curl", "curl")
    inner = run_command(net, "sh", "-c", f"id -u; {curl} -sS --max-time 20 http://{TARGET_V4}/page; exit 9")
    # `ip netns exec` is root's: enter first, then become somebody else.
    enter, command = inner[: inner.index(sys.executable)], inner[inner.index(sys.executable) :]
    done = subprocess.run(
        [*enter, "unshare", "--mount", "sh", "-c", ROOTLESS_SETUP, "sh", *command],
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (9, f"65534\n{PAGE}"), done.stderr

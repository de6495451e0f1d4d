"""shared/confinement.py: what a confined process can still do, and what not; tests/e2e/test_privileges.py tries real workers."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.confinement import kernel_confinement
from shared.seccomp import NUMBERS, filter_system_calls, seccomp_trouble

HEADERS = {
    "x86_64": (0, Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")),
    "aarch64": (1, Path("/usr/include/asm-generic/unistd.h")),
}
ATTEMPTS = r"""
import errno, json, os, socket, sys, threading
from encodings import idna
from pathlib import Path
from shared.privileges import drop_privileges
from shared.system import confine

folder, sockets = Path(sys.argv[1]), sys.argv[2] == "sockets"
inherited = open(folder / "open", "a")
listener = socket.create_server(("127.0.0.1", 0))
drop_privileges(None)  # still root, if it was: what is refused is refused by the confinement
confine([folder / "readable", folder / "one"], sockets=sockets)

def attempt(action):
    try:
        result = action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    if hasattr(result, "close"):
        result.close()
    return "done"

def thread():
    begun = threading.Thread(target=lambda: None)
    begun.start()
    begun.join()

def dial():
    with socket.create_connection(listener.getsockname()):
        pass

print(json.dumps({
    "read below a directory": attempt((folder / "readable" / "deep" / "file").read_text),
    "list it": attempt(lambda: os.listdir(folder / "readable")),
    "read the one file": attempt((folder / "one").read_text),
    "read another": attempt((folder / "other").read_text),
    "write where it reads": attempt(lambda: open(folder / "readable" / "new", "w")),
    "write what was open": attempt(lambda: inherited.write("x")),
    "remove": attempt((folder / "one").unlink),
    "execute": attempt(lambda: os.execv("/bin/true", ["true"])),
    "fork": attempt(os.fork),
    "a thread": attempt(thread),
    "look an address up": attempt(lambda: socket.getaddrinfo("fe80::1%lo", 80)),
    "signal itself": attempt(lambda: os.kill(os.getpid(), 0)),
    "signal its parent": attempt(lambda: os.kill(os.getppid(), 0)),
    "listen": attempt(lambda: socket.create_server(("127.0.0.1", 0))),
    "dial": attempt(dial),
    "UDP": attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "listen with what is there": attempt(listener.listen),
    "become another user": attempt(lambda: os.setuid(os.getuid())),
    "descriptor of a process": attempt(lambda: os.pidfd_open(os.getpid())),
}))
"""
ALLOWED = {
    "read below a directory", "list it", "read the one file", "write what was open", "a thread", "signal itself",
}  # fmt: skip
OF_A_WORKER = {"dial", "UDP", "look an address up"}  # the last with the name of an interface, which takes a socket
DENIED_BY_LANDLOCK = {"read another", "write where it reads", "remove"}


def confined(folder: Path, kind: str, *wrapper: str) -> dict[str, str]:
    (folder / "readable" / "deep").mkdir(parents=True)
    for name in "readable/deep/file", "one", "other":
        (folder / name).write_text("text")
    command = (*wrapper, sys.executable, "-c", ATTEMPTS, str(folder), kind)
    outcomes: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return outcomes


@pytest.mark.skipif(not kernel_confinement().landlock or bool(seccomp_trouble()), reason="needs Landlock and seccomp")
@pytest.mark.parametrize(
    ("kind", "more"), [("sockets", OF_A_WORKER), ("none", {"listen with what is there"})], ids=["worker", "http"]
)
def test_what_it_can_do_and_what_not(tmp_path: Path, kind: str, more: set[str]) -> None:
    outcomes = confined(tmp_path, kind)
    assert {what for what, outcome in outcomes.items() if outcome == "done"} == ALLOWED | more
    assert {outcomes[what] for what in DENIED_BY_LANDLOCK} == {"EACCES"}
    assert outcomes["execute"] == outcomes["fork"] == outcomes["netlink"] == "EPERM"


@pytest.mark.skipif(bool(seccomp_trouble()), reason="needs seccomp")
def test_without_landlock_the_filter_alone(tmp_path: Path) -> None:
    outcomes = confined(tmp_path, "sockets", sys.executable, "-m", "tests.support.old_kernel")
    done = {what for what, outcome in outcomes.items() if outcome == "done"}
    assert done == ALLOWED | DENIED_BY_LANDLOCK | OF_A_WORKER


def test_kernel_without_landlock_is_told() -> None:
    program = "from shared.confinement import kernel_confinement; print(*kernel_confinement().remarks)"
    command = (sys.executable, "-m", "tests.support.old_kernel", sys.executable, "-c", program)
    told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "no Landlock, so that their user alone keeps workers from files: the kernel has none" in told


def test_unknown_architecture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert seccomp_trouble() == "the numbers of system calls on riscv64 are not known here"
    with pytest.raises(KeyError):
        filter_system_calls(sockets=True)


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    column, header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"needs {header} (package linux-libc-dev)")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")
    known = {name: int(number) for name, number in pattern.findall(header.read_text())}
    assert {name: pair[column] for name, pair in NUMBERS.items()} == {name: known.get(name) for name in NUMBERS}

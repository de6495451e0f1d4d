"""Somebody has taken over a worker or the HTTP process: runs attempts in it, on SIGUSR2, once it is confined.

Put this directory on PYTHONPATH and set TUNLOOM_INTRUDER to a directory; no line of the product knows of it. The file
`question` in it, a JSON object, is read at the signal, and `answer` is written: what was attempted -> the error, or SUCCEEDED.
"""

import ctypes
import fcntl
import json
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB  # include/uapi/linux/if_tun.h
IFF_TUN_NO_PI = 0x1001
TIOCSTI = 0x5412
PTRACE_SEIZE = 0x4206
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
AF_PACKET, AF_NETLINK, ETH_P_ALL = 17, 16, 0x0300
RTM_NEWROUTE, NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 24, 1, 4, 0x400
OF_WHICH = {"workers": "worker", "engine.http": "http"}

libc = ctypes.CDLL(None, use_errno=True)


def system_call(numbers: dict[str, Any], name: str, *arguments: int | bytes | None) -> None:
    """Raises OSError when the kernel refuses."""
    number = numbers[name][("x86_64", "aarch64").index(platform.machine())]
    converted = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    converted += [ctypes.c_ulong(0)] * (6 - len(converted))
    if libc.syscall(ctypes.c_long(number), *converted) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def opening(path: str, flags: int = os.O_RDONLY) -> Callable[[], int]:
    """An attempt to open a file."""
    return lambda: os.open(path, flags)


def open_tun() -> None:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"evil0", IFF_TUN_NO_PI))


def change_routes() -> None:
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        route = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 4, 253, 1, 0)
        body = route + struct.pack("=HH4s", 8, 1, socket.inet_aton("192.0.2.99")) + struct.pack("=HHI", 8, 4, 1)
        flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
        netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))


def ask_master(run_dir: str) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(run_dir + "/control.sock")


def attempts(question: dict[str, Any], tun: int | None, numbers: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What is tried."""
    run_dir, root_file, master = question["run_dir"], question["root_file"], question["master"]
    guardian, other = question["guardian"], question["other"]

    def call(name: str, *arguments: int | bytes | None) -> Callable[[], None]:
        return lambda: system_call(numbers, name, *arguments)

    tried: dict[str, Callable[[], object]] = {
        "read /etc/shadow": opening("/etc/shadow"),
        "read a file of root": opening(root_file),
        "list the run directory": lambda: os.listdir(run_dir),
        "read the journal": opening(run_dir + "/network.journal"),
        "write the journal": opening(run_dir + "/network.journal", os.O_WRONLY | os.O_CREAT),
        "make a file in the run directory": opening(run_dir + "/evil", os.O_WRONLY | os.O_CREAT),
        "make a file in /tmp": opening("/tmp/tunloom-evil", os.O_WRONLY | os.O_CREAT),
        "make a directory in /tmp": lambda: os.mkdir("/tmp/tunloom-evil"),
        "make a link in /tmp": lambda: os.symlink("/etc/shadow", "/tmp/tunloom-evil"),
        "make a device": lambda: os.mknod("/tmp/tunloom-evil", 0o20600, os.makedev(1, 1)),
        "make a socket file": lambda: socket.socket(socket.AF_UNIX).bind("/tmp/tunloom-evil"),
        "write a kernel parameter": opening("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY | os.O_CREAT),
        "read the master's memory": opening(f"/proc/{master}/mem"),
        "read the master's environment": opening(f"/proc/{master}/environ"),
        "read the master's arguments": opening(f"/proc/{master}/cmdline"),
        "read another's memory": opening(f"/proc/{other}/mem"),
        "look at another's descriptors": lambda: os.listdir(f"/proc/{other}/fd"),
        "ask the master": lambda: ask_master(run_dir),
        "open a tun": open_tun,
        "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        "open a packet socket": lambda: socket.socket(AF_PACKET, socket.SOCK_RAW, ETH_P_ALL),
        "change routes": change_routes,
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "make a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "type at the terminal": lambda: fcntl.ioctl(2, TIOCSTI, b"x"),
        "signal the master": lambda: os.kill(master, 0),
        "signal the guardian": lambda: os.kill(guardian, 0),
        "signal another of its user": lambda: os.kill(other, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "open another as a pidfd": lambda: os.pidfd_open(other),
        "trace another": call("ptrace", PTRACE_SEIZE, other),
        "read another's memory by a call": call("process_vm_readv", other, None, 0, None, 0),
        "slow another down": lambda: os.setpriority(os.PRIO_PROCESS, other, 19),
        "limit another": call("prlimit64", other, 7, None, None),
        "become root": lambda: os.setuid(0),
        "join groups": lambda: os.setgroups([0]),
        "become root in a namespace": call("unshare", CLONE_NEWUSER),
        "make a network namespace": call("unshare", CLONE_NEWNET),
        "fork into a namespace": call("clone", CLONE_NEWUSER | signal.SIGCHLD),
        "enter a namespace": call("setns", 0, CLONE_NEWNET),
        "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "change its root": lambda: os.chroot("/tmp"),
        "execute a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "load a program into the kernel": call("bpf", 0, None, 0),
        "trace the kernel": call("perf_event_open", None, 0, -1 & (1 << 64) - 1, -1 & (1 << 64) - 1, 0),
        "handle page faults": call("userfaultfd", 1),
        "make an io_uring": call("io_uring_setup", 1, None),
        "make a key": call("add_key", b"user", b"evil", b"x", 1, -3 & (1 << 64) - 1),
        "load a module": call("init_module", None, 0, b""),
        "read the kernel's log": call("syslog", 3, None, 0),
        "set the clock": call("clock_settime", 0, None),
    }
    if tun is not None:
        tried["make the tun outlive the engine"] = lambda: fcntl.ioctl(tun, TUNSETPERSIST, 1)
        tried["change what the tun takes"] = lambda: fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"evil0", 1))
    else:
        tried["dial"] = lambda: socket.create_connection(("127.0.0.1", 9464))
    return tried


def outcome(action: Callable[[], object]) -> str:
    """Do it; return the error's name, or SUCCEEDED."""
    try:
        action()
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    return "SUCCEEDED"


def wait_for_the_signal(folder: Path, tun: int | None) -> None:
    """Have confinement be followed by an ear for the signal."""
    import shared.system
    from shared.seccomp import NUMBERS

    confine = shared.system.confine
    question, answer = folder / "question", os.open(folder / f"answer-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
    asked = os.open(question, os.O_RDONLY | os.O_CREAT, 0o600)

    def on_signal(*_: object) -> None:
        told = json.loads(os.pread(asked, 65536, 0))
        found = {name: outcome(action) for name, action in attempts(told, tun, NUMBERS).items()}
        os.write(answer, json.dumps(found).encode() + b"\n")

    def then_listen(*arguments: Any, **options: Any) -> None:
        confine(*arguments, **options)
        signal.signal(signal.SIGUSR2, on_signal)

    shared.system.confine = then_listen


directory = os.environ.get("TUNLOOM_INTRUDER")
kind = next((kind for module, kind in OF_WHICH.items() if module in sys.orig_argv), None)
if directory is not None and kind is not None:
    # workers MASTER CONTROL DOORBELL POOL TUN
    wait_for_the_signal(
        Path(directory), int(sys.orig_argv[sys.orig_argv.index("workers") + 5]) if kind == "worker" else None
    )

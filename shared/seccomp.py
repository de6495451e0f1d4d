"""A filter of system calls (seccomp(2)): what a worker or the HTTP process never does is answered with EPERM.

A list of what is refused, not of what is allowed: the interpreter and its libraries call what they like, from one version
to the next. It closes what an unprivileged process may do to the kernel and to others of its user; what takes a privilege is on
it as well, since the kernel then is not even asked. The filter is a hundred comparisons: less than a binding to libseccomp,
which would have to be installed. Since Linux 5.11 the kernel keeps in a bitmap which calls are always allowed.
"""

import ctypes
import errno
import os
import platform
import socket
import struct

__all__ = ["NUMBERS", "filter_system_calls", "seccomp_trouble"]

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180),
    # other programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "personality": (135, 92),
    # namespaces, mounts, files by handle
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "mknod": (133, None), "mknodat": (259, 33),
    # users and capabilities
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152), "capset": (126, 91),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
    "lookup_dcookie": (212, 18),
    # sockets that wait for others
    "bind": (49, 200),
}  # fmt: skip
_LOOKED_AT: dict[str, tuple[int | None, int | None]] = {
    "ioctl": (16, 29), "socket": (41, 198), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "listen": (50, 201), "connect": (42, 203),
}  # fmt: skip
"""Those that are refused now and then."""
NUMBERS = _REFUSED | _LOOKED_AT
"""Name -> number on x86-64, on aarch64 (asm/unistd_64.h, asm-generic/unistd.h); None where there is no such call."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> column above, AUDIT_ARCH_* (include/uapi/linux/audit.h)."""
_X32 = 0x40000000  # __X32_SYSCALL_BIT: the same calls under other numbers

# include/uapi/linux/bpf_common.h, filter.h, seccomp.h, prctl.h, sched.h
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
CLONE_THREAD, CLONE_NEW = 0x00010000, 0x7E020000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_FIRST, _SECOND = 16, 24  # of the low halves of the arguments, little endian
_SOCK_TYPE_MASK = 0xF  # include/linux/net.h
_TTY_AND_TUN, _FIRST_OF_TUN = ord("T"), 200  # ioctls 'T', 200 and above: include/uapi/linux/if_tun.h
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # input as if it were typed at the terminal (ioctl_tty(2))

_Instruction = tuple[int, str, str, int]
"""Code, label to jump to if true, if false (empty: the next one), operand."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)


def seccomp_trouble() -> str:
    """Why there can be no filter here; empty when there can."""
    if platform.machine() not in _ARCHITECTURES or struct.calcsize("P") != 8:
        return f"the numbers of system calls on {platform.machine()} are not known here"
    # Without a program it fails, with EFAULT if the kernel would take one.
    unused = ctypes.c_ulong(0)
    _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), None, unused, unused)
    code = ctypes.get_errno()
    return "" if code == errno.EFAULT else f"the kernel takes no filter ({os.strerror(code)})"


def filter_system_calls(*, sockets: bool) -> None:
    """Refuse what is not needed, for good.

    `sockets`: new ones for TCP and UDP may be made, but none that listens; else none may be made, and those that are there
    may listen. no_new_privs must be set, and there be one thread. Raises OSError.
    """
    column, architecture = _ARCHITECTURES[platform.machine()]
    numbers = {name: pair[column] for name, pair in NUMBERS.items()}
    code = _assemble(_program(numbers, architecture, sockets=sockets))
    program = _Program(len(code) // 8, code)
    unused = ctypes.c_ulong(0)
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), unused, unused) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "seccomp")


def _program(numbers: dict[str, int | None], architecture: int, *, sockets: bool) -> list[_Instruction | str]:
    """Return instructions, and labels before those that are jumped to."""

    def calls(label: str, *names: str) -> list[_Instruction]:
        return [(_EQUAL, label, "", number) for name in names if (number := numbers[name]) is not None]

    refuse: _Instruction = (_RETURN, "", "", _ERRNO | errno.EPERM)
    return [
        (_LOAD, "", "", _ARCHITECTURE),
        (_EQUAL, "", "refuse", architecture),
        (_LOAD, "", "", _NUMBER),
        (_AT_LEAST, "refuse", "", _X32),
        *calls("ioctl", "ioctl"),
        *calls("socket", "socket"),
        *calls("clone", "clone"),
        *calls("unknown", "clone3"),
        *calls("own process", "kill", "tgkill"),
        *calls("limits", "prlimit64"),
        *calls("refuse", *_REFUSED, "listen" if sockets else "connect"),
        "allow",
        (_RETURN, "", "", _ALLOW),
        "refuse",
        refuse,
        # Its flags lie in memory, where a filter cannot look: libc takes clone when there is no clone3.
        "unknown",
        (_RETURN, "", "", _ERRNO | errno.ENOSYS),
        "ioctl",  # none that would configure the tun, or type at the terminal
        (_LOAD, "", "", _SECOND),
        (_EQUAL, "refuse at last", "", _TIOCSTI),
        (_EQUAL, "refuse at last", "", _TIOCLINUX),
        (_AND, "", "", 0xFF00),
        (_EQUAL, "", "allow at last", _TTY_AND_TUN << 8),
        (_LOAD, "", "", _SECOND),
        (_AND, "", "", 0xFF),
        (_AT_LEAST, "refuse at last", "allow at last", _FIRST_OF_TUN),
        "socket",
        *(_only_tcp_and_udp() if sockets else [refuse]),
        "clone",  # threads alone
        (_LOAD, "", "", _FIRST),
        (_ANY, "refuse at last", "", CLONE_NEW),
        (_ANY, "allow at last", "refuse at last", CLONE_THREAD),
        "limits",
        (_LOAD, "", "", _FIRST),
        (_EQUAL, "allow at last", "", 0),
        "own process",
        (_LOAD, "", "", _FIRST),
        (_EQUAL, "allow at last", "refuse at last", os.getpid()),
        "allow at last",  # jumps go forward
        (_RETURN, "", "", _ALLOW),
        "refuse at last",
        refuse,
    ]


def _only_tcp_and_udp() -> list[_Instruction | str]:
    return [
        (_LOAD, "", "", _FIRST),
        (_EQUAL, "type", "", socket.AF_INET),
        (_EQUAL, "type", "refuse at last", socket.AF_INET6),
        "type",
        (_LOAD, "", "", _SECOND),
        (_AND, "", "", _SOCK_TYPE_MASK),
        (_EQUAL, "allow at last", "", socket.SOCK_STREAM),
        (_EQUAL, "allow at last", "refuse at last", socket.SOCK_DGRAM),
    ]


def _assemble(program: list[_Instruction | str]) -> bytes:
    """Return the instructions as struct sock_filter[]; jumps go forward, by at most 255."""
    places: dict[str, int] = {}
    instructions: list[_Instruction] = []
    for line in program:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)
    return b"".join(
        struct.pack(
            "=HBBI",
            code,
            places[true] - place - 1 if true else 0,
            places[false] - place - 1 if false else 0,
            operand,
        )
        for place, (code, true, false, operand) in enumerate(instructions)
    )

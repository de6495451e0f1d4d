"""Which capabilities (capabilities(7)) the master and the guardian keep, and why; all others are given up at the start.

They stay user 0, whose files are theirs in any case; what they cannot do any more is, among others, to load kernel modules,
mount, enter namespaces, trace kernels, set clocks, make device files, or change owners of files.
"""

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shared.privileges import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_KILL,
    CAP_NET_ADMIN,
    CAP_NET_BIND_SERVICE,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_NICE,
    CAP_SYS_PTRACE,
    CAP_SYS_RESOURCE,
)
from shared.system import keep_capabilities, kernel_confinement

if TYPE_CHECKING:
    from engine.config.model import EngineConfig

__all__ = ["GUARDIAN", "MASTER", "SERVICE", "RightsError", "keep_master_rights", "keep_rights"]

log = logging.getLogger(__name__)

MASTER = {
    CAP_NET_ADMIN: "CAP_NET_ADMIN",  # tun, routes, rules, nftables, owners of sockets; a worker's SO_MARK
    CAP_SETUID: "CAP_SETUID",  # workers and the HTTP process have users of their own
    CAP_SETGID: "CAP_SETGID",
    CAP_KILL: "CAP_KILL",  # and are killed when they hang; without it they would not even die with us (PR_SET_PDEATHSIG)
    CAP_SYS_PTRACE: "CAP_SYS_PTRACE",  # which program a flow belongs to (/proc/PID/fd, /proc/PID/exe)
    CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",  # the same; configuration files of others
    CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE",  # a guardian asks to be spared when memory runs out
    CAP_SYS_NICE: "CAP_SYS_NICE",  # and to run before others
}
"""Number -> name."""

SERVICE = MASTER | {CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE"}
"""What the engine is to be started with: the last for metrics at a port below 1024, before the rest is given up."""

GUARDIAN = {CAP_NET_ADMIN: "CAP_NET_ADMIN"}
"""Addresses, routes, rules, nftables; kernel parameters of the network and the journal are user 0's."""


class RightsError(Exception):
    """The kernel lets us give nothing up; the text is one sentence for the user."""


def keep_master_rights(run_dir: Path, config: "EngineConfig") -> None:
    """Give up all but MASTER; call it before anything is opened and any thread begins. Raises RightsError.

    Say, too, what will not confine the workers, which can give up no more than the kernel lets them.
    """
    for remark in kernel_confinement().remarks:
        log.warning("%s", remark)
    cache = config.cache
    keep_rights(MASTER, [run_dir, *([Path(cache.path).parent] if cache is not None and cache.path is not None else [])])


def keep_rights(rights: Iterable[int], directories: Iterable[Path]) -> None:
    """Give up all but `rights`, for good and for all children; nothing happens to who is not root. Raises RightsError.

    `directories`: where files are written. Is one of them another user's, as with `--run-dir` in somebody's home,
    CAP_DAC_OVERRIDE is kept for it.
    """
    if os.geteuid() != 0:
        return
    own = all(map(_is_own, directories))
    try:
        keep_capabilities((*rights, *(() if own else (CAP_DAC_OVERRIDE,))))
    except OSError as error:
        raise RightsError(f"capabilities cannot be given up: {error.strerror}") from error


def _is_own(directory: Path) -> bool:
    """Whether files can be made there without a capability."""
    try:
        status = directory.stat()
    except OSError:  # whoever writes there will say so
        return True
    return status.st_uid == os.geteuid() and bool(status.st_mode & stat.S_IWUSR)

"""What the machine, or the cgroup that the engine runs in, lets it have: memory and open files, and what follows for workers."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.system import file_limit

__all__ = ["Limits", "cgroup_memory", "find_limits", "raise_file_limit"]

MIB = 1024 * 1024
MASTER_MEMORY = 128 * MIB
"""For everything but the workers: master, guardian, HTTP process, and the helper that changes the network, for a moment."""
WORKER_MEMORY = 24 * MIB
"""Of a worker without flows, with some room."""
FLOW_MEMORY = 16 * 1024
"""Of a flow, with the smallest chunk of buffer."""
WORKER_MEMORY_MIN = 64 * MIB
WORKER_MEMORY_WANTED = 256 * MIB
FLOWS_WANTED = 4096
"""With less of either the user is told."""
BUFFERS_MIN = 8 * MIB
FILES_RESERVED = 48
"""Descriptors of a worker that are no flows: loop, tun, pool, channel, log, DNS, health checks."""
FILES_MIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What there is, and each worker's share of it."""

    memory: int
    """Bytes for the whole engine."""
    memory_source: Literal["RAM", "cgroup"]
    """What sets it."""
    files: int
    """Descriptors that a process may open (RLIMIT_NOFILE)."""
    worker_memory: int
    """Bytes of its own memory above which a worker is replaced."""
    worker_buffers: int
    """Bytes that the flows of a worker may hold in all."""
    flows: int
    """TCP flows of a worker."""
    associations: int
    """UDP associations of a worker; each takes two descriptors."""
    remarks: tuple[str, ...]
    """What the user must know: that there is less than was asked for."""


def raise_file_limit() -> None:
    """Each TCP flow is one descriptor in its worker: ask for as many as the hard limit allows, for us and our children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (file_limit(hard), hard))


def find_limits(workers: int, *, flows: int, associations: int) -> Limits:
    """Find what there is for `workers`, each of which is to have at most `flows` TCP flows and `associations`."""
    memory, source = _ram(), "RAM"
    in_cgroup = cgroup_memory()
    if in_cgroup is not None and in_cgroup < memory:
        memory, source = in_cgroup, "cgroup"
    # Not all of it: the kernel's socket buffers count as well, and the page cache must have some room.
    worker_memory = max((memory * 3 // 4 - MASTER_MEMORY) // workers, WORKER_MEMORY_MIN)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = max(files - FILES_RESERVED, FILES_MIN)
    fewer_associations = min(associations, max(usable // 8, 2))
    flows_of_files = usable - 2 * fewer_associations
    flows_of_memory = (worker_memory - WORKER_MEMORY - BUFFERS_MIN) // FLOW_MEMORY
    fewer_flows = min(flows, flows_of_files, flows_of_memory)
    buffers = max((worker_memory - WORKER_MEMORY - fewer_flows * FLOW_MEMORY) // 2, BUFFERS_MIN)
    remarks = []
    if flows_of_files < min(flows, FLOWS_WANTED):
        remarks.append(
            f"only {files:,} files may be open (ulimit -n), so that each worker carries at most {flows_of_files:,} TCP flows and "
            f"{fewer_associations:,} UDP associations: raise the hard limit (LimitNOFILE=) to have more"
        )
    if worker_memory < WORKER_MEMORY_WANTED:
        remarks.append(
            f"only {memory >> 20:,} MiB of memory ({source}), so that each of {workers} workers may take "
            f"{worker_memory >> 20:,} MiB: at most {fewer_flows:,} TCP flows, which hold {buffers >> 20:,} MiB at a time"
        )
    return Limits(
        memory=memory,
        memory_source="cgroup" if source == "cgroup" else "RAM",
        files=files,
        worker_memory=worker_memory,
        worker_buffers=buffers,
        flows=fewer_flows,
        associations=fewer_associations,
        remarks=tuple(remarks),
    )


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_memory(mounts: Path = Path("/proc/self/mounts"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the least bytes that this process's cgroup, or one above it, allows; None without a limit.

    Both versions of cgroups(7): memory.max, memory.limit_in_bytes.
    """
    if not membership.exists():  # not on macOS
        return None
    limits: list[int] = []
    if not membership.exists():  # no Linux
        return None
    for mount, options, path in _memory_hierarchies(mounts, membership):
        name = "memory.limit_in_bytes" if "memory" in options else "memory.max"
        # Where the mount does not show the whole tree, as in many containers, its top is this process's own.
        inner = mount / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == mount or mount in folder.parents:
                limits += _read_limit(folder / name)
    # Version 1 says "no limit" as the largest number of pages.
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _memory_hierarchies(mounts: Path, membership: Path) -> Iterator[tuple[Path, list[str], str]]:
    """Give mount point, mount options, and this process's path, of each hierarchy that may limit memory."""
    paths: dict[str, str] = {}
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    for line in mounts.read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup2" and "" in paths:
            yield Path(point), [], paths[""]
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in paths:
            yield Path(point), ["memory"], paths["memory"]


def _read_limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:  # the root of a hierarchy has none
        return []
    return [int(text)] if text.isdecimal() else []  # or "max"

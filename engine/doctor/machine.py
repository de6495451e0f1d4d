"""Rights, tun, offloads, memory, files, programs that we need."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from engine.doctor import Finding
from engine.limits import find_limits
from engine.tun import TunError, open_tun
from shared.config import UdpConfig
from shared.system import kernel_confinement

__all__ = ["examine_machine"]

CAP_NET_ADMIN = 12  # include/uapi/linux/capability.h
MTU = 65535
FLOWS = 20_000


def examine_machine(workers: int) -> Iterator[Finding]:
    """Look at what the engine needs of the machine, for so many workers."""
    yield _rights()
    yield _confinement()
    yield from _tun()
    yield from _limits(workers)
    if shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        yield Finding(
            "kill_switch",
            "note",
            "the program nft is missing; only --kill-switch needs it",
            "install the package nftables",
        )


def _rights() -> Finding:
    if os.geteuid() != 0:
        return Finding(
            "rights",
            "error",
            f"this is user {os.geteuid()}, and opening a tun and changing routes takes root",
            "run it with sudo, or as a service: `sudo engine service install`",
        )
    status = Path("/proc/self/status")
    if status.exists():
        (effective,) = (
            int(line.split()[1], 16) for line in status.read_text().splitlines() if line.startswith("CapEff:")
        )
        if not effective >> CAP_NET_ADMIN & 1:
            return Finding(
                "rights",
                "error",
                "this is root, but without the capability CAP_NET_ADMIN",
                "in a container: `--cap-add NET_ADMIN --device /dev/net/tun`",
            )
    return Finding("rights", "ok", "this is root with CAP_NET_ADMIN")


def _confinement() -> Finding:
    found = kernel_confinement()
    if not found.remarks:
        text = f"workers are confined by Landlock (ABI {found.landlock}) and a filter of system calls"
        return Finding("confinement", "ok", text)
    return Finding(
        "confinement",
        "note",
        "; ".join(found.remarks),
        "use Linux 5.13 or later on x86-64 or aarch64, started with landlock among its security modules (lsm=)",
    )


def _tun() -> Iterator[Finding]:
    try:
        tun = open_tun(mtu=MTU)
    except TunError as error:
        text, _, mend = str(error).rstrip(".").partition(": ")
        yield Finding("tun", "error", text[0].lower() + text[1:], mend or "run it with sudo")
        return
    try:
        yield Finding("tun", "ok", f"a tun can be opened ({tun.name})")
        yield _offload(tun.features)
    finally:
        tun.close()


def _offload(features: tuple[str, ...]) -> Finding:
    granted = ", ".join(features) or "none"
    if "tso4" not in features or "tso6" not in features:
        return Finding(
            "offload",
            "warning",
            f"the kernel grants the tun no segmentation offload ({granted}): bulk flows take several times the processor",
            "use a kernel with TUN_F_TSO4 and TUN_F_TSO6 (any since 2.6.27; gVisor and some containers have none)",
        )
    if "uso4" not in features:
        return Finding(
            "offload",
            "note",
            f"the kernel grants no UDP segmentation offload ({granted}): QUIC takes more of the processor",
            "Linux 6.2 and later have it",
        )
    return Finding("offload", "ok", f"the kernel grants {granted}")


def _limits(workers: int) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limits = find_limits(workers, flows=FLOWS, associations=UdpConfig().max_associations)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for remark in limits.remarks:
        text, _, mend = remark.partition(": ")
        yield Finding("limits", "warning", text, mend)
    if not limits.remarks:
        yield Finding(
            "limits",
            "ok",
            f"each of {workers} workers may have {limits.flows:,} TCP flows in {limits.worker_memory >> 20:,} MiB",
        )

"""What the processes of a running engine may do, as `engine status` tells it."""

from pathlib import Path

import msgspec

from engine.rights import SERVICE
from shared.privileges import CAP_DAC_OVERRIDE
from shared.system import kernel_confinement

__all__ = ["Rights", "present_rights"]


class Rights(msgspec.Struct, kw_only=True):
    """What the processes of the engine may do."""

    capabilities: list[str] = []
    """Of the master."""
    landlock: int = 0
    """ABI of what confines the workers and the HTTP process; 0: nothing does."""
    seccomp: bool = False
    """Whether their system calls are filtered."""
    remarks: list[str] = []
    """Why there is less than there could be."""


def present_rights() -> Rights:
    """Return what this process, and the workers that it starts, may do."""
    confinement = kernel_confinement()
    return Rights(
        capabilities=_own_capabilities(),
        landlock=confinement.landlock,
        seccomp=confinement.seccomp,
        remarks=list(confinement.remarks),
    )


def _own_capabilities() -> list[str]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # macOS has none
        return []
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    names = SERVICE | {CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE"}
    return [names.get(number, f"capability {number}") for number in range(64) if effective >> number & 1]

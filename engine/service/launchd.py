"""The property list by which launchd of macOS runs the engine (launchd.plist(5)). Pure.

Its place is /Library/LaunchDaemons/LABEL.plist (root:wheel, 0644); `sudo launchctl bootstrap system PLACE` starts it.
"""

import plistlib
from collections.abc import Sequence

__all__ = ["LABEL", "launchd_plist"]

LABEL = "io.tunloom.engine"
LOG = "/var/log/tunloom.log"
EXIT_TIMEOUT = 30
"""Seconds from SIGTERM to SIGKILL; routes and DNS settings are restored in one or two."""
THROTTLE_INTERVAL = 10
"""Seconds between two starts of an engine that fails."""
FILES = 65536
"""Each TCP flow is one descriptor in its worker."""


def launchd_plist(program: Sequence[str], arguments: Sequence[str]) -> bytes:
    """Return the list for `program start arguments`, XML. `program` is a command with absolute paths.

    It starts with the machine, and again when it has failed; not when it was stopped (exit code 0).
    """
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [*program, "start", *arguments],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": THROTTLE_INTERVAL,
            "ExitTimeOut": EXIT_TIMEOUT,
            "ProcessType": "Interactive",  # others are slowed down when the machine is busy
            "WorkingDirectory": "/",
            "StandardOutPath": LOG,
            "StandardErrorPath": LOG,
            "SoftResourceLimits": {"NumberOfFiles": FILES},
            "HardResourceLimits": {"NumberOfFiles": FILES},
        }
    )

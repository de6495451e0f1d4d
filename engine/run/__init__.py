"""`engine run`: one command in a network namespace of its own, whose only way out is our tun. The machine's stays as it is.

    engine run (session) ── fork ──► cell: new namespaces, tun inside, resolver ── exec ──► CMD      (the new namespace)
        │   ▲                          │ descriptor of the tun
        │   └──────────────────────────┘
        └── fork ──► engine: an ordinary master and its workers, with that tun       (the machine's namespace: its sockets
                                                                                      reach a proxy on 127.0.0.1)

The namespaces have no name. They, the tun in them and all their routes are gone with the last process and descriptor that
holds them, so that nothing is left even after kill -9: the command dies with the session (PR_SET_PDEATHSIG), the engine
ends with the session too, and ends whatever the command has left behind.

session    the parent: starts the two, passes signals on, returns the command's exit code
cell       what the command's process does before it becomes the command
resolver   a resolv.conf that works in there; pure
leftovers  processes of the namespace that outlive the command
network    the master's network that needs no changes
"""

import sys

__all__ = ["RunError", "check_platform"]


class RunError(Exception):
    """The command cannot be run; the text is one sentence with the way out, `code` the exit code."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def check_platform() -> None:
    """Raises RunError where there are no network namespaces."""
    if sys.platform != "linux":
        raise RunError(f"engine run needs network namespaces, which {sys.platform} does not have", code=1)

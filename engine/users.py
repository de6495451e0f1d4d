"""The unprivileged users that parts of the engine become."""

__all__ = ["HTTP_UID", "WORKER_UID"]

WORKER_UID = 60922
"""Numeric user of the workers, in a range that systemd leaves unused (60578 to 61183); it needs no account. Their sockets
are told from all others by it, so that no capability is needed to keep them out of the tun."""
HTTP_UID = WORKER_UID + 1
"""Numeric user of the HTTP process. Not the workers', who could otherwise be signalled by it and whose sockets leave the tun."""

"""Installs, removes and looks at the engine's unit with `systemctl`."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.service.systemd import ENVIRONMENT_FILE, UNIT_NAME, UNIT_PATH, systemd_unit

__all__ = ["ServiceFailed", "install", "need_privacy", "state", "uninstall"]

RUNNING_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)


class ServiceFailed(Exception):
    """systemd is not there, or refuses; the text is one sentence for the user."""


def install(program: Sequence[str], arguments: Sequence[str]) -> None:
    """Write the unit, and have it started now and with the machine. Raises ServiceFailed."""
    _need_systemd()
    need_privacy(ENVIRONMENT_FILE)
    try:
        UNIT_PATH.write_text(systemd_unit(program, arguments))
        UNIT_PATH.chmod(0o644)
    except OSError as error:
        raise ServiceFailed(f"{UNIT_PATH} cannot be written: {error.strerror}") from None
    _systemctl("daemon-reload")
    _systemctl("enable", UNIT_NAME)
    _systemctl("restart", UNIT_NAME)


def uninstall() -> bool:
    """Stop the service and remove its unit; return whether there was one. Raises ServiceFailed."""
    if not UNIT_PATH.exists():
        return False
    if RUNNING_SYSTEMD.exists():
        _systemctl("disable", "--now", UNIT_NAME)
    try:
        UNIT_PATH.unlink()
    except OSError as error:
        raise ServiceFailed(f"{UNIT_PATH} cannot be removed: {error.strerror}") from None
    if RUNNING_SYSTEMD.exists():
        _systemctl("daemon-reload")
    return True


def state() -> dict[str, str | bool]:
    """Return `installed`, and what systemd says: `enabled` and `active` (systemctl(1)); "unknown" without systemd."""
    answers: dict[str, str | bool] = {"installed": UNIT_PATH.exists()}
    for question in ("enabled", "active"):
        answer = "unknown"
        if RUNNING_SYSTEMD.exists():
            done = subprocess.run(["systemctl", f"is-{question}", UNIT_NAME], capture_output=True, text=True)
            answer = done.stdout.strip() or "unknown"
        answers[question] = answer
    return answers


def need_privacy(path: Path) -> None:
    """Raises ServiceFailed when others can read a file with secrets; it need not be there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & 0o077:
        raise ServiceFailed(f"{path} is for secrets, and others can read it: `chmod 600 {path}`")


def _need_systemd() -> None:
    if not RUNNING_SYSTEMD.exists():
        raise ServiceFailed(
            "this machine is not run by systemd; `engine service unit` prints the unit, and `engine service plist` what "
            "launchd of macOS takes"
        )


def _systemctl(*arguments: str) -> None:
    command = ["systemctl", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SYSTEMD_COLORS": "0"})
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ServiceFailed(f"`{' '.join(command)}` failed: {said[0]}; `journalctl -u {UNIT_NAME}` says more")

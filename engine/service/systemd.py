"""The unit by which systemd runs the engine (systemd.service(5), systemd.exec(5)). Pure.

Hardened as far as a process can be that opens a tun, changes routes and kernel parameters, and becomes other users. What the
capabilities are for stands in engine/rights.py.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.rights import SERVICE

__all__ = ["ENVIRONMENT_FILE", "UNIT_NAME", "UNIT_PATH", "systemd_unit"]

UNIT_NAME = "tunloom.service"
UNIT_PATH = Path("/etc/systemd/system") / UNIT_NAME
ENVIRONMENT_FILE = Path("/etc/tunloom/environment")
"""TUNLOOM_PROXY and TUNLOOM_SECRET, for root alone; it need not be there."""

_UNIT = """\
[Unit]
Description=tunloom, carries all traffic to a SOCKS5 proxy
Wants=network-online.target
After=network-online.target nss-lookup.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-{environment}
ExecStart={start}
ExecReload={reload}
ExecStopPost=-{repair}
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2 3
TimeoutStartSec=90
TimeoutStopSec=30
WatchdogSec=30
KillMode=mixed
OOMPolicy=continue
RuntimeDirectory=tunloom
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
LimitNOFILE=524288
UMask=0077

NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
LockPersonality=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectSystem=full
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def systemd_unit(program: Sequence[str], arguments: Sequence[str]) -> str:
    """Return the unit for `program start arguments`. `program` is a command with absolute paths.

    It starts with the machine, and again when it has failed or hangs, but not when the configuration is wrong. What a crash
    leaves is undone before the next start; a kill switch stays closed until then.
    """
    return _UNIT.format(
        environment=ENVIRONMENT_FILE,
        start=_command(*program, "start", "--run-dir", "/run/tunloom", *arguments),
        reload=_command(*program, "reload", "--run-dir", "/run/tunloom"),
        repair=_command(*program, "repair", "--hold", "--run-dir", "/run/tunloom"),
        capabilities=" ".join(SERVICE.values()),
    )


def _command(*words: str) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """One word of a command line (systemd.syntax(7)): specifiers and variables are not meant."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or not word or any(char.isspace() for char in word) else word

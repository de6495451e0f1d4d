"""Proxy settings of desktops: macOS (`scutil --proxy`), GNOME and its kin (gsettings), KDE (kioslaverc).

Each has a pure parser. They belong to the desktop's user, so their tools run as that user and not as root.
"""

import configparser
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from engine.discovery import Candidate, Source
from engine.discovery.environment import parse_environment, sudo_uid
from engine.proxy_url import ProxyUrlError, parse_proxy_url
from shared.config import ProxyConfig

__all__ = ["parse_gsettings", "parse_kioslaverc", "parse_pac", "parse_scutil", "settings_candidates"]

TOOL_TIMEOUT = 3.0  # seconds
PAC_MAX = 256 * 1024  # bytes
RUN_USER = Path("/run/user")

Settings = tuple[list[Candidate], list[str]]
"""Proxies, and remarks about what cannot be used."""


def settings_candidates() -> Settings:
    """Return the proxies that desktop settings name. Runs programs: call it off the loop."""
    candidates: list[Candidate] = []
    remarks: list[str] = []
    for found, remark in _all_settings():
        candidates += found
        remarks += remark
    return candidates, remarks


def _all_settings() -> Iterator[Settings]:
    if shutil.which("scutil") is not None:
        yield parse_scutil(_output(["scutil", "--proxy"]))
    for uid in _desktop_users():
        user = pwd.getpwuid(uid)
        if shutil.which("gsettings") is not None:
            text = _output(["gsettings", "list-recursively", "org.gnome.system.proxy"], user=user)
            yield parse_gsettings(text)
        try:
            text = Path(user.pw_dir, ".config/kioslaverc").read_text(errors="replace")
        except OSError:
            continue
        yield parse_kioslaverc(text, os.environ)


def _desktop_users() -> list[int]:
    """Return the users whose settings count: the one behind sudo, else those with a session bus, else ourselves."""
    uid = sudo_uid() or os.getuid()
    if uid == 0:
        try:
            sessions = sorted(int(path.name) for path in RUN_USER.iterdir() if (path / "bus").exists())
        except OSError:
            sessions = []
        uids = [session for session in sessions if session] or [0]
    else:
        uids = [uid]
    return [uid for uid in uids if _exists(uid)]


def _exists(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _output(command: list[str], *, user: pwd.struct_passwd | None = None) -> str:
    """Return what a command prints, as `user` with that user's session; empty when it fails."""
    options: dict[str, object] = {}
    if user is not None:
        runtime = RUN_USER / str(user.pw_uid)
        options["env"] = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": user.pw_dir,
            "XDG_RUNTIME_DIR": str(runtime),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
        }
        if os.geteuid() == 0 and user.pw_uid:
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT, cwd="/", **options
        )  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return ""
    return str(done.stdout, errors="replace") if done.returncode == 0 else ""


# macOS

_SCUTIL_LINE = re.compile(r"^\s*(\w+)\s*:\s*(.+?)\s*$", re.MULTILINE)


def parse_scutil(text: str) -> Settings:
    """Read `<dictionary> { Key : value ... }`. A proxy that is switched off may leave its host behind."""
    # Only the outermost dictionary: __SCOPED__ repeats the keys per interface, ExceptionsList has numbers as keys.
    values = dict(_SCUTIL_LINE.findall(text.partition("__SCOPED__")[0]))
    proxies = [
        (f"{name} of the system settings", kind, values.get(f"{name}Proxy", ""), values.get(f"{name}Port", ""))
        for name, kind in (("SOCKS", "socks5"), ("HTTPS", "http"), ("HTTP", "http"))
        if values.get(f"{name}Enable") == "1"
    ]
    candidates, remarks = _candidates(proxies)
    if values.get("ProxyAutoConfigEnable") == "1":
        found, remark = _read_pac(values.get("ProxyAutoConfigURLString", ""), "the system settings")
        candidates += found
        remarks += remark
    return candidates, remarks


# GNOME

_GSETTINGS_LINE = re.compile(r"^org\.gnome\.system\.proxy(?:\.(\w+))? ([\w-]+) (.*)$", re.MULTILINE)


def parse_gsettings(text: str) -> Settings:
    """Read `gsettings list-recursively org.gnome.system.proxy`: lines of schema, key and value; strings are quoted."""
    values = {(schema, key): value.strip().strip("'\"") for schema, key, value in _GSETTINGS_LINE.findall(text)}
    mode = values.get(("", "mode"))
    if mode == "auto":
        return _read_pac(values.get(("", "autoconfig-url"), ""), "the GNOME settings")
    if mode != "manual":
        return [], []
    proxies = [
        (f"{name} of the GNOME settings", kind, values.get((name, "host"), ""), values.get((name, "port"), ""))
        for name, kind in (("socks", "socks5"), ("https", "http"), ("http", "http"))
    ]
    return _candidates(proxies)


# KDE

_KDE_NONE, _KDE_MANUAL, _KDE_PAC, _KDE_WPAD, _KDE_ENVIRONMENT = (
    "0",
    "1",
    "2",
    "3",
    "4",
)  # ProxyType, kio's kprotocolmanager.h
_KDE_KEYS = {"socksproxy": "socks5", "httpsproxy": "http", "httpproxy": "http"}


def parse_kioslaverc(text: str, environment: Mapping[str, str]) -> Settings:
    """Read ~/.config/kioslaverc: values are `http://127.0.0.1 8080`, with a blank before the port.

    Where KDE is told to take the environment, the values are names of variables of `environment`.
    """
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
        section = parser["Proxy Settings"]
    except (configparser.Error, KeyError):
        return [], []
    kind = section.get("ProxyType", _KDE_NONE)
    if kind == _KDE_PAC:
        return _read_pac(section.get("Proxy Config Script", ""), "the KDE settings")
    if kind == _KDE_WPAD:
        return [], ["the KDE settings search the network for a proxy (WPAD), which is not followed"]
    candidates: list[Candidate] = []
    remarks: list[str] = []
    for key, claimed in _KDE_KEYS.items():
        value = section.get(key, "").strip()
        origin = f"{key} of the KDE settings"
        if kind == _KDE_ENVIRONMENT and value in environment:
            found, remark = parse_environment({"all_proxy": environment[value]}, f"named by {origin}")
        elif kind == _KDE_MANUAL and value:
            host, _, port = value.rpartition(" ") if " " in value else value.rpartition(":")
            found, remark = _candidates([(origin, claimed, host.partition("://")[2] or host, port)])
        else:
            continue
        candidates += found
        remarks += remark
    return candidates, remarks


# PAC

_PAC_PROXY = re.compile(r"\b(SOCKS5?|PROXY|HTTPS?)\s+(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d+)")


def parse_pac(text: str, origin: str) -> list[Candidate]:
    """Return the proxies that a script names, wherever it does: it is not run. SOCKS first."""
    found = dict.fromkeys(_PAC_PROXY.findall(text))
    proxies = [
        (origin, "socks5" if word.startswith("SOCKS") else "http", host.strip("[]"), port)
        for word, host, port in sorted(found, key=lambda match: not match[0].startswith("SOCKS"))
    ]
    return _candidates(proxies)[0]


def _read_pac(url: str, whose: str) -> Settings:
    """Read a script from a file or from this machine: V2RayU serves one on 127.0.0.1:11085. No other server is asked."""
    if not re.match(r"file:///|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", url):
        return [], [f"{whose} name the script {url or '(no address)'} for the proxy, which is not run"]
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=TOOL_TIMEOUT) as answer:
            text = answer.read(PAC_MAX).decode(errors="replace")
    except (OSError, ValueError) as error:
        return [], [f"{whose} name the script {url} for the proxy, which cannot be read: {error}"]
    return parse_pac(text, f"{url}, named by {whose}"), []


def _candidates(proxies: Iterable[tuple[str, str, str, str]]) -> Settings:
    """Return candidates of (origin, kind, host, port), and remarks; empty hosts and port 0 mean none."""
    candidates: list[Candidate] = []
    remarks: list[str] = []
    for origin, kind, host, port in proxies:
        if not host or port in ("", "0"):
            continue
        try:
            proxy: ProxyConfig = parse_proxy_url(f"{kind}://{f'[{host}]' if ':' in host else host}:{port}")
        except ProxyUrlError as error:
            remarks.append(f"{origin} is not understood: {str(error).removeprefix('--proxy: ')}")
        else:
            candidates.append(Candidate(Source.SETTINGS, origin, proxy))
    return candidates, remarks

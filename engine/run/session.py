"""The parent of `engine run`: starts cell and engine, passes signals on to the command, and returns its exit code.

It is a plain process without threads and loop: it forks, and then waits for signals, those of its children among them.
"""

import errno
import logging
import os
import pwd
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec

from engine.config.model import TunConfig
from engine.run import RunError
from engine.run.cell import GO, Cell, Command, Opened, Ready, Refused, die_with, enter_and_exec
from engine.run.leftovers import end_leftovers
from engine.tun import TunDevice
from engine.tun.linux import LinuxTun

__all__ = ["Session", "command_environment", "run_session"]

log = logging.getLogger(__name__)

READY_TIMEOUT = 30.0  # seconds; workers on a loaded machine need some
STOP_TIMEOUT = 10.0  # seconds for the engine to end before it is killed
MESSAGE_MAX = 4096  # bytes
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SI_USER = 0
"""si_code of kill(2) (sigaction(2)); sigqueue and tgkill are below. What is above comes from the kernel: of the terminal's
signals the command, in the same process group, has its own."""
NOT_FOUND, NOT_EXECUTABLE, SIGNALLED = 127, 126, 128  # exit codes of sh(1)

FDS_MAX = 3  # the tun, and two for the socket table

Engine = Callable[[TunDevice, tuple[int, ...], Path], int]
"""Runs an engine on a tun, with descriptors for its socket table and a run directory, until SIGTERM; returns the exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What `engine run` was asked for."""

    arguments: Sequence[str]
    user: pwd.struct_passwd | None
    tun: TunConfig
    run_dir: Path | None
    """None: one of its own, removed at the end."""


def run_session(session: Session, engine: Engine) -> int:
    """Run the command to its end; return the exit code. Raises RunError when it cannot be started."""
    if session.run_dir is not None:
        session.run_dir.mkdir(parents=True, exist_ok=True)
        return _Run(session, session.run_dir, engine).run()
    scratch = Path(tempfile.mkdtemp(prefix="tunloom-run-", dir=_runtime_dir()))
    try:
        return _Run(session, scratch, engine).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _runtime_dir() -> str | None:
    """Where short-lived directories go: their paths are short, and they do not outlive a boot."""
    runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return runtime if runtime and os.access(runtime, os.W_OK) else None


class _Run:
    """One run; its processes in the order of their start."""

    def __init__(self, session: Session, run_dir: Path, engine: Engine) -> None:
        self._session = session
        self._run_dir = run_dir
        self._engine = engine
        self._cell_pid = 0
        self._engine_pid = 0
        self._namespace = 0

    def run(self) -> int:
        mask = set(map(signal.Signals, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        channel, cells_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with channel, cells_end:
                self._start_cell(cells_end, channel, mask)
                cells_end.close()
                tun, tables = self._receive_tun(channel)
                try:
                    self._start_engine(tun, tables, channel)
                finally:
                    tun.close()
                    for table in tables:
                        os.close(table)
                self._receive(channel)
                # From here on signals are waited for, so that none comes between a look and a wait.
                signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
                channel.send(GO)
                self._raise_if_not_executed(channel)
            return self._wait_for_command()
        finally:
            self._end(mask)

    def _start_cell(self, cells_end: socket.socket, channel: socket.socket, mask: set[signal.Signals]) -> None:
        session = self._session
        cell = Cell(
            mtu=session.tun.mtu,
            offload=session.tun.offload,
            addresses=session.tun.addresses,
            dns_addresses=session.tun.dns_addresses,
            rootless=os.geteuid() != 0,
            scratch=self._run_dir,
        )
        command = Command(
            arguments=session.arguments,
            environment=command_environment(os.environ, session.user),
            user=session.user,
            signal_mask=mask,
        )
        own_pid = os.getpid()
        self._cell_pid = os.fork()
        if self._cell_pid == 0:
            channel.close()
            enter_and_exec(cells_end, cell, command, session=own_pid)

    def _receive_tun(self, channel: socket.socket) -> tuple[TunDevice, tuple[int, ...]]:
        message, fds = self._receive(channel)
        assert isinstance(message, Opened), "the tun comes first"
        self._namespace = message.namespace
        for fd in fds:
            os.set_inheritable(fd, False)
        tun = LinuxTun(fds[0], message.name, message.mtu, offload=message.offload, features=message.features)
        return tun, tuple(fds[1:])

    def _receive(self, channel: socket.socket) -> tuple[Opened | Ready, list[int]]:
        """Return what the cell says, with descriptors. Raises RunError when it cannot go on."""
        data, fds, _, _ = socket.recv_fds(channel, MESSAGE_MAX, FDS_MAX)
        if not data:
            raise RunError("the process of the command has died before it was ready", code=1)
        message = msgspec.json.decode(data, type=Opened | Ready | Refused)
        if isinstance(message, Refused):
            raise RunError(message.reason, code=3 if message.not_permitted else 1)
        return message, fds

    def _start_engine(self, tun: TunDevice, tables: tuple[int, ...], channel: socket.socket) -> None:
        """Start the engine and wait until packets flow."""
        path = self._run_dir / "ready.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(path))
            own_pid = os.getpid()
            self._engine_pid = os.fork()
            if self._engine_pid == 0:
                channel.close()
                ready.close()
                self._become_engine(tun, tables, path, own_pid)
            self._wait_until_ready(ready)
        path.unlink()

    def _become_engine(self, tun: TunDevice, tables: tuple[int, ...], ready: Path, session: int) -> NoReturn:
        """In a fork: run the engine, then end what the command has left, should the session not be there to do so."""
        code = 1
        try:
            os.setsid()  # Ctrl-C is for the command
            die_with(session, signal.SIGTERM)
            os.environ["NOTIFY_SOCKET"] = str(ready)
            code = self._engine(tun, tables, self._run_dir)
            if os.getppid() != session:
                end_leftovers(self._namespace)
                shutil.rmtree(self._run_dir, ignore_errors=True)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            log.exception("the engine has failed")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _wait_until_ready(self, ready: socket.socket) -> None:
        pidfd = os.pidfd_open(self._engine_pid)
        try:
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            events = dict(poll.poll(READY_TIMEOUT * 1000))
            if pidfd in events:
                _, status = os.waitpid(self._engine_pid, 0)
                self._engine_pid = 0
                # It has said why on standard error.
                raise RunError("the engine could not start", code=os.waitstatus_to_exitcode(status) or 1)
            if not events:
                raise RunError(f"the engine was not ready within {READY_TIMEOUT:.0f} s", code=1)
        finally:
            os.close(pidfd)

    def _raise_if_not_executed(self, channel: socket.socket) -> None:
        """Raises RunError when the exec has failed; when it has succeeded the channel is closed."""
        answer = channel.recv(MESSAGE_MAX)
        if answer:
            code = int(answer)
            os.waitpid(self._cell_pid, 0)
            self._cell_pid = 0
            raise RunError(
                f"{self._session.arguments[0]}: {os.strerror(code)}",
                code=NOT_FOUND if code == errno.ENOENT else NOT_EXECUTABLE,
            )

    def _wait_for_command(self) -> int:
        """Pass signals on until the command has ended; return its exit code."""
        while True:
            information = signal.sigwaitinfo((*PASSED_ON, signal.SIGCHLD))
            if information.si_signo != signal.SIGCHLD:
                if information.si_code <= SI_USER:
                    os.kill(self._cell_pid, information.si_signo)
                continue
            if self._engine_pid and os.waitpid(self._engine_pid, os.WNOHANG)[0]:
                self._engine_pid = 0
                log.error("the engine has ended: nothing gets out of the command's network any more")
            pid, status = os.waitpid(self._cell_pid, os.WNOHANG)
            if pid:
                self._cell_pid = 0
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else SIGNALLED - code

    def _end(self, mask: set[signal.Signals]) -> None:
        """End what is still there, the command's leftovers first: they are to see a network that works."""
        if self._cell_pid:
            os.kill(self._cell_pid, signal.SIGKILL)
            os.waitpid(self._cell_pid, 0)
        if self._namespace:
            left = end_leftovers(self._namespace)
            if left:
                log.warning("ended what the command has left behind: %s", ", ".join(left))
        if self._engine_pid:
            os.kill(self._engine_pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT
            while not os.waitpid(self._engine_pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(self._engine_pid, signal.SIGKILL)
                    os.waitpid(self._engine_pid, 0)
                    break
                time.sleep(0.01)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_PROXY_VARIABLES = ("all_proxy", "socks_proxy", "https_proxy", "http_proxy", "ftp_proxy")


def command_environment(environment: Mapping[str, str], user: pwd.struct_passwd | None) -> dict[str, str]:
    """Return what the command gets: proxies on loopback are left out, which is not the machine's loopback in there."""
    result = {
        name: value
        for name, value in environment.items()
        if name.lower() not in _PROXY_VARIABLES or not _is_on_loopback(value)
    }
    if user is not None:
        result |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}
    return result


def _is_on_loopback(url: str) -> bool:
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

"""Logging of every process of the engine: one line an event on stderr, as text or as JSON.

An argument of a message that has `log_fields()` (a flow: workers/relay/facts.py) is what the line is about: its fields stand
beside the message in JSON, so that all lines of a flow can be joined by `flow`.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

__all__ = ["FLOWS", "LEVELS", "READY", "Tap", "configure_logging", "level_name", "set_log_level"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FLOWS = 15
"""Level of the beginning and the end of flows: told with `debug`, and to those who follow the log at `info`."""

READY = "engine.ready"
"""Logger of the one line that passes at every level once its own level is INFO: scripts wait for it."""


def level_name(level: int) -> str:
    """Return the key of LEVELS that a level belongs to."""
    return next((name for name, value in reversed(LEVELS.items()) if level >= value), "debug")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {}
    for argument in record.args if isinstance(record.args, tuple) else ():
        log_fields = getattr(argument, "log_fields", None)
        if log_fields is not None:
            fields |= log_fields()
    return fields


class _JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, process, logger, message, fields, and the traceback if there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Console(logging.StreamHandler[TextIO]):
    """Standard error, from `least` on. Not the handler's level: READY passes at every one."""

    least = logging.INFO

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self.least or record.name == READY


def set_log_level(level: str) -> None:
    """Log to stderr from `level` (a key of LEVELS) on from now on; who follows the log (Tap) does not notice."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Console):
            handler.least = LEVELS[level]
    _let_through()


def _let_through() -> None:
    """Have the root logger let through what the most curious of its handlers wants."""
    root = logging.getLogger()
    wanted = [handler.least if isinstance(handler, _Console) else handler.level for handler in root.handlers]
    root.setLevel(min(wanted, default=logging.WARNING))


def configure_logging(level: str, style: Literal["text", "json"], *, name: str) -> None:
    """Log to stderr from `level` (a key of LEVELS) on; `name` says which process speaks (master, worker 0)."""
    logging.addLevelName(FLOWS, "DEBUG")
    handler = _Console(sys.stderr)
    if style == "json":
        handler.setFormatter(_JsonFormatter(name))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {name}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)
    # The loop's own debug lines ("Using selector") are not the user's concern.
    logging.getLogger("asyncio").setLevel(logging.WARNING)


class Tap(logging.Handler):
    """Gives every line of this process from `level` on to `take`: its level (a key of LEVELS), message and fields.

    With `info` flows are told, as `info`: who follows the log wants to see them.
    """

    def __init__(self, level: int, take: Callable[[str, str, dict[str, str]], object]) -> None:
        super().__init__(FLOWS if level == logging.INFO else level)
        self._take = take
        logging.getLogger().addHandler(self)
        _let_through()

    def remove(self) -> None:
        """Listen no more."""
        logging.getLogger().removeHandler(self)
        _let_through()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        level = "info" if record.levelno == FLOWS else level_name(record.levelno)
        self._take(level, record.getMessage(), {name: str(value) for name, value in _fields(record).items()})

"""Logging of every process of the engine: one line an event on stderr, as text or as JSON."""

import json
import logging
import sys
import time
from typing import Literal

__all__ = ["configure_logging"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, process, logger, message, and the traceback if there is one."""

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
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, style: Literal["text", "json"], *, name: str) -> None:
    """Log to stderr from `level` (a key of LEVELS) on; `name` says which process speaks (master, worker 0)."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(_JsonFormatter(name))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {name}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    # The loop's own debug lines ("Using selector") are not the user's concern.
    logging.getLogger("asyncio").setLevel(logging.WARNING)

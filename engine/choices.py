"""What people choose while the engine runs, beside the configuration: the mode, members of selectors, the level of the log.

Where the configuration has a cache_file, mode and members are kept over a restart, in a file of JSON, as sing-box keeps them.
"""

import logging
import os
from pathlib import Path

import msgspec

from engine.config.model import EngineConfig
from engine.usage import state_dir

__all__ = ["Choices", "choices_path", "open_choices"]

log = logging.getLogger(__name__)

FILE_NAME = "choices.json"


class _Kept(msgspec.Struct, omit_defaults=True):
    """The file."""

    mode: str | None = None
    selected: dict[str, str] = {}


class Choices:
    """Starts with what `path` has kept; None: nothing is kept. A file that cannot be used is told, and the engine goes on.

    mode       None: nobody has chosen one
    selected   tag of a selector -> tag of its member
    log_level  in force now (a key of shared.log.LEVELS)
    """

    def __init__(self, path: Path | None, log_level: str) -> None:
        self._path = path
        kept = _load(path) if path is not None else _Kept()
        self.mode = kept.mode
        self.selected = kept.selected
        self.log_level = log_level

    def keep(self) -> None:
        """Write mode and members to the file: a few hundred bytes, all or nothing."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(_Kept(self.mode, self.selected)))
            new.replace(self._path)
        except OSError as error:
            log.warning("what was chosen is not kept: %s cannot be written: %s", self._path, error.strerror)


def _load(path: Path) -> _Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("what was chosen before is lost: %s cannot be read: %s", path, error.strerror)
    except msgspec.MsgspecError:
        log.warning("what was chosen before is lost: %s holds something else", path)
    return _Kept()


def choices_path(config: EngineConfig, run_dir: Path) -> Path | None:
    """Return the file of an engine: beside its cache_file when that has a path; None when there is no cache_file."""
    cache = config.cache
    if cache is None:
        return None
    if cache.path is None:
        return state_dir(run_dir) / FILE_NAME
    suffix = f".{cache.cache_id}" if cache.cache_id else ""
    return Path(f"{cache.path}.choices{suffix}")


def open_choices(config: EngineConfig, run_dir: Path) -> Choices:
    """Return the choices that an engine starts with."""
    return Choices(choices_path(config, run_dir), config.log.level)

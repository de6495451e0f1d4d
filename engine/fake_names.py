"""The table of fake addresses (shared/fakeip.py) of a run: kept in a file, so that an address means the same after a restart."""

from pathlib import Path

from engine.config.model import EngineConfig
from shared.config import FakeIpConfig
from shared.fakeip import FakeIpTable, fake_ip_layout

__all__ = ["FakeNamesError", "fake_ip_config", "open_fake_names"]


class FakeNamesError(Exception):
    """The table cannot be used; the text is one sentence for the user."""


def fake_ip_config(config: EngineConfig) -> FakeIpConfig | None:
    """Return the ranges of the fake addresses; None when no name gets one."""
    for server in config.policy.dns.servers:
        if server.kind == "fakeip":
            return FakeIpConfig(inet4_range=server.inet4_range, inet6_range=server.inet6_range)
    return None


def open_fake_names(config: EngineConfig, run_dir: Path) -> FakeIpTable | None:
    """Open the table, to be closed by the caller; None when no name gets a fake address. Raises FakeNamesError."""
    ranges = fake_ip_config(config)
    if ranges is None:
        return None
    path = _path(config, run_dir)
    try:
        return FakeIpTable.load(path, fake_ip_layout(ranges.inet4_range, ranges.inet6_range))
    except BlockingIOError:
        raise FakeNamesError(f"{path} is used by another engine: give one of them another cache_file") from None
    except OSError as error:
        raise FakeNamesError(f"the fake addresses cannot be kept in {path}: {error.strerror}") from None
    except ValueError as error:
        raise FakeNamesError(str(error)) from None


def _path(config: EngineConfig, run_dir: Path) -> Path:
    """Beside the cache file of the configuration, which other programs keep in a form of their own; or in the run directory."""
    cache = config.cache
    if cache is None or not cache.store_fakeip or cache.path is None:
        return run_dir / "fakeip"
    suffix = f".{cache.cache_id}" if cache.cache_id else ""
    return Path(f"{cache.path}.fakeip{suffix}")

"""What the tests of engine/config share: a machine of their own, and short ways to load a text."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.config.build.machine import Machine
from engine.config.load import load_text
from engine.config.model import EngineConfig
from engine.config.problems import ConfigError

Load = Callable[..., EngineConfig]
TUN = {"type": "tun", "tag": "tun-in", "address": ["198.18.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}
SOCKS = {"type": "socks", "tag": "proxy", "server": "127.0.0.1", "server_port": 1080}
DIRECT = {"type": "direct", "tag": "direct"}
BASE: dict[str, Any] = {"inbounds": [TUN], "outbounds": [SOCKS, DIRECT]}


def machine(files: Mapping[str, bytes] | None = None) -> Machine:
    """A machine with two interfaces and the given files."""

    def read(path: Path) -> bytes:
        if files is None or str(path) not in files:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return files[str(path)]

    return Machine(frozenset({"lo", "eth0"}), read)


def with_base(**sections: Any) -> str:
    """Return a configuration with a tun, a proxy and a direct outbound, and `sections` instead of or beside them."""
    return json.dumps({**BASE, **sections}, indent=1)


@pytest.fixture
def load() -> Load:
    """Load a text, or a dict put over BASE."""

    def load(text: str | None = None, /, *, files: Mapping[str, bytes] | None = None, **sections: Any) -> EngineConfig:
        return load_text(text if text is not None else with_base(**sections), machine=machine(files))

    return load


@pytest.fixture
def errors(load: Load) -> Callable[..., list[str]]:
    """Load what must be refused; return the lines of its errors."""

    def errors(text: str | None = None, /, *, files: Mapping[str, bytes] | None = None, **sections: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, files=files, **sections)
        return str(caught.value).splitlines()

    return errors

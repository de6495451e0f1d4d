"""Reloads under a thousand flows."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import Stage, close, stage, surviving
from tests.support.engine import ENGINE
from tests.support.netns import PROXY_V4
from tests.support.upstreams import embedded

__all__ = ["ROWS"]

FLOWS = 1000
RELOADS = 20


def _write(config: Path, final: str) -> None:
    outbounds = [
        {"type": "socks", "tag": tag, "server": PROXY_V4, "server_port": port}
        for tag, port in (("first", 1080), ("second", 1081))
    ]
    tun = {"type": "tun", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}
    config.write_text(json.dumps({"inbounds": [tun], "outbounds": outbounds, "route": {"final": final}}))


def _reload(made: Stage) -> str:
    """Return what `engine reload` says; its error, if it has one."""
    try:
        return made.net.client.run(*ENGINE, "reload", "--run-dir", str(made.engine.run_dir))
    except AssertionError as error:
        return str(error)


def _under_thousand(once: Callable[[Stage, Path, int, Finding], None]) -> Callable[[Finding, bool], None]:
    def play(finding: Finding, quick: bool) -> None:
        with TemporaryDirectory() as folder:
            config = Path(folder, "config.json")
            _write(config, "first")
            with (
                stage("-c", str(config), proxy=None) as made,
                embedded(made.net.internet),
                embedded(made.net.internet, port=1081),
            ):
                pairs = made.flows(FLOWS // 10 if quick else FLOWS)
                with surviving(finding, made.pool, pairs):
                    for number in range(RELOADS):
                        with finding.recovering():
                            once(made, config, number, finding)
                        finding.times += 1
                close(pairs)
                if any(worker.restarts for worker in made.engine.status().workers):
                    finding.problems.append("a worker died")

    return play


def _good(made: Stage, config: Path, number: int, finding: Finding) -> None:
    port = (1081, 1080)[number % 2]
    _write(config, "second" if port == 1081 else "first")
    said = _reload(made)
    if said != "reloaded\n" or f":{port}" not in made.engine.status().proxy:
        finding.problems.append(f"reload {number}: {said}")
    close(made.flows(1))


def _bad(made: Stage, config: Path, number: int, finding: Finding) -> None:
    _write(config, "nobody")
    said = _reload(made)
    if "not reloaded" not in said or ":1080" not in made.engine.status().proxy:
        finding.problems.append(f"reload {number} of a configuration with an error: {said}")
    close(made.flows(1))


ROWS = [
    Row("reload", f"{RELOADS} reloads under 1,000 flows, all flows", _under_thousand(_good)),
    Row("reload-bad", f"{RELOADS} reloads of a configuration with an error, all flows", _under_thousand(_bad)),
]

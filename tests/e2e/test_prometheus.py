"""A real Prometheus scrapes a running engine: the alert rules are sound, and every query of rules and dashboard gets data."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.support.engine import running_engine
from tests.support.http import request
from tests.support.netns import TARGET_V4, Topology, wait_until
from tests.support.sockets import flow, listening
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).parents[2] / "docs/prometheus"
PORT = 9090
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: tunloom
    static_configs: [{{targets: ["127.0.0.1:9464"]}}]
"""


def expressions() -> list[str]:
    """Every query of the dashboard and of the alerts, the latter without what they compare with."""
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    found = [target["expr"].replace("$__rate_interval", "10s") for panel in panels for target in panel["targets"]]
    for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]:
        found += [
            re.split(r" (?:==|>|<) [\d.]+$", rule["expr"])[0].replace("10m", "10s").replace("5m", "10s")
            for rule in group["rules"]
        ]
    return found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_every_query_gets_data(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    rules = DOCS / "alerts.yml"
    checked = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(rules=rules))
    prometheus = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
                  f"--web.listen-address=127.0.0.1:{PORT}", "--log.level=error"]  # fmt: skip

    def query(expression: str) -> list[Any]:
        answer = request(net.client, f"/api/v1/query?{urlencode({'query': expression})}", port=PORT)
        if answer.status == 503:  # it is starting
            return []
        assert answer.status == 200, answer
        result = answer.json["data"]["result"]
        assert isinstance(result, list)
        return result

    def is_up() -> bool:
        try:
            return bool(query("tunloom_healthy"))
        except OSError:
            return False

    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url),
        net.client.process(*prometheus),
        listening(net, TARGET_V4) as server,
    ):
        app, peer = flow(net, server)
        with app, peer:
            wait_until(is_up, timeout=60, what="the first scrape")
            for expression in expressions():
                wait_until(lambda: bool(query(expression)), timeout=60, what=f"data for {expression}")  # noqa: B023
            assert query("tunloom_healthy")[0]["value"][1] == "1"

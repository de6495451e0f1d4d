"""HTTP requests out of a namespace: the library opens its socket in the thread that has entered."""

import json
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from tests.support.netns import Namespace

__all__ = ["Answer", "metrics", "request"]

DEFAULT_PORT = 9464
TIMEOUT = 20.0  # seconds; only turns a hang into a failure


@dataclass(frozen=True)
class Answer:
    """Status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def request(
    namespace: Namespace,
    path: str,
    *,
    method: str = "GET",
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    body: Any = None,
    **headers: str,
) -> Answer:
    """Ask a server as seen from `namespace`; `body` is sent as JSON. Raises OSError."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        with namespace.entered():
            connection.connect()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def metrics(namespace: Namespace, **options: Any) -> dict[str, float]:
    """Scrape; return each sample as `name{label="value",...}` (labels sorted) -> value."""
    answer = request(namespace, "/metrics", **options)
    assert answer.status == 200, answer
    return {
        _name(sample.name, sample.labels): sample.value
        for family in parse(answer.body.decode())
        for sample in family.samples
    }


def _name(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name

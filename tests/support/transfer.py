"""One file over HTTP with curl: what arrived, and how long it took."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.support.netns import Namespace
from tests.support.web import Blob

__all__ = ["Transfer", "download", "upload"]

CONNECT_TIME_MAX, TIME_MAX = 20, 60  # seconds


@dataclass(frozen=True)
class Transfer:
    """`seconds` from the request to the last byte of the answer, without the connection's set-up."""

    sha256: str
    seconds: float


def download(apps: Namespace, url: str, work: Path) -> Transfer:
    """Fetch `url` with a curl in `apps`; `work` is a directory. Raises AssertionError when curl fails."""
    answer, seconds = _curl(apps, url, work)
    return Transfer(hashlib.sha256(answer).hexdigest(), seconds)


def upload(apps: Namespace, url: str, work: Path, blob: Blob) -> Transfer:
    """Put `blob` to a server of tests.support.web, which answers with its hash. Raises AssertionError when curl fails."""
    # Without `Expect`, or curl would wait up to a second for the server's word.
    answer, seconds = _curl(apps, url, work, "-T", str(blob.path), "-H", "Expect:")
    return Transfer(answer.decode(), seconds)


def _curl(apps: Namespace, url: str, work: Path, *options: str) -> tuple[bytes, float]:
    received = work / "received"
    limits = ("--connect-timeout", str(CONNECT_TIME_MAX), "--max-time", str(TIME_MAX))
    report = ("-o", str(received), "-w", "%{time_pretransfer} %{time_total}")
    times = apps.run("curl", "-sS", "--fail", *limits, *report, *options, url)
    start, end = map(float, times.split())
    return received.read_bytes(), end - start

"""Headless Chromium in a namespace, driven over its DevTools protocol (--remote-debugging-pipe: JSON with a zero at its end)."""

import base64
import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import Namespace, wait_until

__all__ = ["Page", "chromium"]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--window-size=1400,1000",
    "--disable-dev-shm-usage",
)  # fmt: skip
LOAD_TIMEOUT = 60.0  # seconds; only turns a hang into a failure


class Page:
    """One tab."""

    def __init__(self, writing: int, reading: int) -> None:
        self._writing = writing
        self._reading = os.fdopen(reading, "rb")
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        data = bytearray()
        while (byte := self._reading.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            data += byte
        return bytes(data)

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression is, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)

    @property
    def text(self) -> str:
        """What a person can read."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, expression: str, what: str) -> None:
        """Wait until a JavaScript expression is true."""
        wait_until(lambda: bool(self.evaluate(expression)), timeout=LOAD_TIMEOUT, what=what)

    def close(self) -> None:
        """Let go of the pipes."""
        os.close(self._writing)
        self._reading.close()

    def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(namespace: Namespace, profile: Path, *options: str) -> Iterator[Page]:
    """Run Chromium in `namespace`, with an empty profile, without QUIC unless there are options; skips without Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium (package chromium)")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The protocol wants descriptors 3 and 4.
    flags = shlex.join((*FLAGS, *(options or ("--disable-quic",))))
    command = f'exec {program} {flags} --user-data-dir="$0" 3<&{theirs_in} 4>&{theirs_out}'
    with subprocess.Popen(
        namespace.command("bash", "-c", command, str(profile)),
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        page = Page(ours_out, ours_in)
        try:
            yield page
        finally:
            process.kill()
            page.close()

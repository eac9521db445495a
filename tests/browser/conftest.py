"""A JupyterLab on this machine, with copies of the notebooks, and a Chromium that looks at it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = os.environ.get("IADD_RUNS")  # as the Makefile sets it; tests see one of their own
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What would otherwise stand in the way of the notebook, or leave cells out of the page that are not in sight.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/themes": {"theme": "JupyterLab Light", "adaptive-theme": False},
}
SECONDS_TO_START = 600


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):  # where there is no browser, no server is started
    """The address of a JupyterLab that opens one notebook alone: a format with {} for its name."""
    place = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", place / "notebooks")
    for name, values in SETTINGS.items():
        path = place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    token, port = secrets.token_hex(16), _free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        f"--ServerApp.root_dir={place / 'notebooks'}",
        f"--LabApp.user_settings_dir={place / 'settings'}",
        f"--LabApp.workspaces_dir={place / 'workspaces'}",
    ]
    # Nothing of the user's own configuration.
    own = {"JUPYTER_CONFIG_DIR": f"{place}/config", "JUPYTER_RUNTIME_DIR": f"{place}/runtime"}
    own["IADD_RUNS"] = RUNS or f"{place}/runs"
    with (place / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=place, env=os.environ | own, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, place / "log.txt")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?token={token}&reset"
    finally:
        server.terminate()
        server.wait(timeout=600)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer in {SECONDS_TO_START} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    missing = "playwright is not installed: pip install -e '.[browser]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=missing)
    named = os.environ.get("CHROMIUM")
    chromium = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not chromium:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=chromium)


@pytest.fixture
def page(browser):
    """An empty page, large enough for all of the explorer."""
    context = browser.new_context(viewport={"width": 1340, "height": 1200})
    found = context.new_page()
    found.set_default_timeout(600_000)
    yield found
    context.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the page go: `$IADD_SCREENSHOTS`, else build/browser."""
    folder = Path(os.environ.get("IADD_SCREENSHOTS") or ROOT / "build" / "browser")
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Headless Chromium over its DevTools protocol: pages as a phone, a desk and a printer show them."""

import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Tab:
    """One tab: `open` a page at a width and in a theme, `ask` it in JavaScript."""

    def __init__(self, socket: Any):
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; what the page complains of meanwhile is kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv(timeout=60))).get("id") != number:
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))
        assert "error" not in message, message
        return message["result"]

    def resize(self, width: int, *, dark: bool = False, height: int = 800) -> None:
        """Another width in CSS pixels, another theme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)

    def open(self, address: str) -> None:
        """Goes there and waits until the page is loaded."""
        self.call("Page.navigate", url=address)
        self.wait_for(f"location.href.startsWith({json.dumps(address)}) && document.readyState == 'complete'")

    def ask(self, expression: str) -> Any:
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Until it is true."""
        until = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < until, f"never true: {expression}; {self.ask('document.body.innerText')}"
            time.sleep(0.05)


@contextmanager
def browsing() -> Iterator[Tab]:
    """A tab of a Chromium of its own; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        program = subprocess.Popen(
            [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(Path(folder) / "DevToolsActivePort", program), max_size=None, compression=None) as ws:
                yield Tab(ws)
        finally:
            program.terminate()
            program.wait(30)


def _address(file: Path, program: subprocess.Popen) -> str:
    """Of the first tab."""
    until = time.monotonic() + 120
    while not (file.is_file() and file.read_text().count("\n")):
        assert program.poll() is None, "Chromium ended"
        assert time.monotonic() < until, "Chromium did not start"
        time.sleep(0.05)
    port, path = file.read_text().split("\n")[:2]
    with connect(f"ws://127.0.0.1:{port}{path}", compression=None) as ws:
        ws.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        while (message := json.loads(ws.recv(timeout=60))).get("id") != 1:
            pass
    return f"ws://127.0.0.1:{port}/devtools/page/{message['result']['targetId']}"

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


def faults(tab: Tab) -> list[str]:
    """What a reader of the page at this width and in this theme would miss; [] is right."""
    return tab.ask(f"({_FAULTS})()")


_FAULTS = """() => {
  const found = new Set(), wide = innerWidth, words = [];
  if (document.scrollingElement.scrollWidth > wide) found.add("the page scrolls sideways");
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (let e = node; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0.8) return color;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), e = walk.currentNode.parentElement;
    if (!text || e.closest("script, style, video") || e.tagName === "title" || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), said = text.slice(0, 30), drawn = e.closest("svg") && e.getScreenCTM?.();
    const size = parseFloat(style.fontSize) * (drawn ? Math.min(drawn.a, drawn.d) : 1);
    if (size < 11) found.add(`${size.toFixed(1)} px: ${said}`);
    const pair = [luminance(numbers(style.color)), luminance(behind(e))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 600);
    if (contrast < (large ? 3 : 4.5)) found.add(`contrast ${contrast.toFixed(2)}: ${said}`);
    if (e.closest(wide > 640 ? ".scroll, pre, .long" : ".long")) continue;  // what scrolls within itself
    const range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    for (const box of range.getClientRects()) {
      if (box.left < -1 || box.right > wide + 1) found.add(`beyond the edge: ${said}`);
      words.push([said, box]);
    }
  }
  words.forEach(([one, a], i) => words.slice(i + 1).forEach(([other, b]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    if (across > 2 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 7) found.add(`${one} covers ${other}`);
  }));
  for (const row of document.querySelectorAll("tr")) {
    const box = row.closest(".scroll"), first = row.cells[0], last = row.cells[row.cells.length - 1];
    if (!row.checkVisibility() || first === last) continue;
    if (wide <= 640) {  // a finger finds no column that it does not see
      if (box.scrollWidth > box.clientWidth) found.add(`a table is cut: ${box.textContent.slice(0, 30)}`);
      continue;
    }
    box.scrollLeft = 1e6;
    const edge = Math.min(wide, box.getBoundingClientRect().right) + 1, place = last.getBoundingClientRect();
    if (place.right > edge || place.left < first.getBoundingClientRect().right - 1) {
      found.add(`the last column cannot be seen: ${row.textContent.slice(0, 30)}`);
    }
    box.scrollLeft = 0;
  }
  return [...found];
}"""

"""A real browser opens a page: what it asked for, what it complained of, what can be seen.

Headless Chromium, driven over a pipe by the DevTools protocol, so no package is needed beyond the
browser itself.
"""

import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE = 60  # seconds

# Every drawing and image with its box, and whether anything but scrolled boxes is too wide.
LOOK = """(() => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const shown = e => e.checkVisibility ? e.checkVisibility() : true;
  const drawings = [...document.querySelectorAll('svg, img')].map(e => ({
    kind: e.tagName.toLowerCase(), box: box(e), visible: shown(e),
    loaded: e.tagName === 'IMG' ? e.complete && e.naturalWidth > 0 : e.childElementCount > 0,
    ink: e.tagName === 'IMG' || [...e.querySelectorAll('path, text, use')].length > 3 }));
  return JSON.stringify({ title: document.title, h1: document.querySelector('h1').innerText,
    drawings, width: window.innerWidth, needed: document.documentElement.scrollWidth,
    broken: [...document.querySelectorAll('a[href^="#"]')]
      .filter(a => !document.querySelector(a.getAttribute('href'))).map(a => a.href) });
})()"""


@dataclass(frozen=True)
class Seen:
    """What came of opening a page."""

    requests: tuple[str, ...]  # urls, without the page itself and data: urls
    complaints: tuple[str, ...]  # console errors and warnings, exceptions
    page: dict[str, Any]


def look_at(path: Path, profile: Path, *, width: int = 1_200) -> Seen:
    """Open a page in a window of ``width`` CSS pixels."""
    assert CHROMIUM is not None
    browser = _Browser(profile)
    try:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser.ask(f"{domain}.enable")
        browser.ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.ask("Page.navigate", url=path.as_uri())
        browser.wait_for("Page.loadEventFired")
        found = browser.ask("Runtime.evaluate", expression=LOOK)
        page = json.loads(found["result"]["value"])
    finally:
        browser.close()
    return Seen(tuple(browser.requests(path.as_uri())), tuple(browser.complaints()), page)


class _Browser:
    """One process; messages end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        self.session, self.events, self._number, self._rest = "", [], 0, b""
        read_by_it, self._out = os.pipe()
        self._in, written_by_it = os.pipe()
        command = [
            *("bash", "-c", f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}', "bash", CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--disable-background-networking", "--disable-dev-shm-usage", "--no-first-run"),
            f"--user-data-dir={profile}",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(read_by_it, written_by_it), stderr=subprocess.DEVNULL
        )
        os.close(read_by_it)
        os.close(written_by_it)

    def ask(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser went away"
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def requests(self, page: str) -> list[str]:
        sent = (e for e in self.events if e.get("method") == "Network.requestWillBeSent")
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if url != page and not url.startswith("data:")]

    def complaints(self) -> list[str]:
        found = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded":
                found.append(str(about["entry"]))
            if event.get("method") == "Runtime.consoleAPICalled":
                found.append(str(about["args"]))
        return found

    def close(self) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)
        os.close(self._in)

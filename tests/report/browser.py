"""A real Chromium without a window, driven over the DevTools protocol through a pair of pipes.

https://chromedevtools.github.io/devtools-protocol/, with --remote-debugging-pipe: texts of JSON that end in a null
byte, to file descriptor 3 of the browser and from its file descriptor 4. No port is opened and nothing is installed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tippingpoint.profiling.device import now

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_S = 30.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# Shells cannot name file descriptors beyond 9.
_START = """import os, sys
for to, given in enumerate(sys.argv[1:3], start=3):
    os.dup2(int(given), to)
os.execv(sys.argv[3], sys.argv[3:])
"""

Record = dict[str, Any]


def chromium() -> str | None:
    """Return the path of a browser; None where none is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A running browser; see `browser`."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process = process
        self._to, self._back = to, back
        self._rest = b""
        self._number = 0
        self.events: list[Record] = []

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> Record:
        """Call a method of the protocol and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: Record = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = now() + _PATIENCE_S
        while True:
            answer = self.read(until)
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def read(self, until: float) -> Record:
        """Return the next message, waiting for it until a moment."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, until - now()))
            part = os.read(self._back, 2**20) if ready else b""
            if not part:
                raise RuntimeError(f"the browser said nothing for {_PATIENCE_S:g} s, or is gone")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def open(self, page: Path, **screen: Any) -> Tab:
        """Open a file in a tab of its own and wait until it is loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.resize(**screen)
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.wait("document.readyState === 'complete'")
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context

    def call(self, method: str, **parameters: Any) -> Record:
        """Call a method of the protocol in this tab."""
        return self._browser.call(method, session=self._session, **parameters)

    def events(self, method: str) -> list[Record]:
        """Return the parameters of every event of a kind so far."""
        self.evaluate("0")  # whatever the browser has to tell comes before the answer
        mine = (event for event in self._browser.events if event.get("sessionId") == self._session)
        return [event["params"] for event in mine if event["method"] == method]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true; the page's own clock does the waiting."""
        self.evaluate(
            "new Promise((done) => {"
            f"const look = () => ({condition}) ? done(true) : setTimeout(look, 10); look(); }})"
        )

    def complaints(self) -> list[str]:
        """Return what the page's console and the browser complained about."""
        said = [str(event["exceptionDetails"]) for event in self.events("Runtime.exceptionThrown")]
        said += [
            f"{event['type']}: {event['args']}"
            for event in self.events("Runtime.consoleAPICalled")
            if event["type"] in ("error", "warning", "assert")
        ]
        return said + [
            f"{event['entry']['level']}: {event['entry']['text']}"
            for event in self.events("Log.entryAdded")
            if event["entry"]["level"] in ("error", "warning")
        ]

    def requests(self) -> list[str]:
        """Return every address that was asked for."""
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]

    def resize(self, *, width: int = 1280, height: int = 900, scale: float = 1, mobile: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            pressed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **pressed)

    def media(self, *, kind: str = "", dark: bool = False) -> None:
        """Pretend to be printed on paper, or on a system that likes it dark."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=scheme)

    def download_into(self, folder: Path) -> None:
        """Let downloads go into a folder."""
        self._browser.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            browserContextId=self._context,
            eventsEnabled=True,
        )

    def downloaded(self) -> None:
        """Wait until a download is complete."""
        until = now() + _PATIENCE_S
        while not any(event.get("params", {}).get("state") == "completed" for event in self._browser.events):
            self._browser.events.append(self._browser.read(until))

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write what is seen into a PNG file."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def print_to(self, path: Path) -> None:
        """Print into a PDF file."""
        found = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(executable: str, folder: Path) -> Iterator[Browser]:
    """Start a browser that keeps what it keeps in a folder, and end it."""
    ours_to, ours_back = os.pipe(), os.pipe()
    # Numbers beyond those that they are to have, so that none is in the other's way.
    theirs = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (ours_to[0], ours_back[1])]
    os.close(ours_to[0])
    os.close(ours_back[1])
    command = [executable, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, theirs), *command],
        pass_fds=theirs,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    for each in theirs:
        os.close(each)
    found = Browser(process, ours_to[1], ours_back[0])
    try:
        yield found
    finally:
        try:
            found.call("Browser.close")
        except (RuntimeError, OSError):
            process.kill()
        process.wait(timeout=_PATIENCE_S)
        os.close(ours_to[1])
        os.close(ours_back[0])

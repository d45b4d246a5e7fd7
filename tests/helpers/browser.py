"""A real browser without a window, spoken to over its DevTools pipe: no driver, no port, no library."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
PATIENCE_S = 120.0


class Browser:
    """One page of a browser; `complaints` are what its console and its loading of files complained of.

    own: start of the addresses that the page may ask.
    """

    own: tuple[str, ...] = ("data:", "file:", "about:")

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read, self._write, self._number, self._buffer = read_fd, write_fd, 0, b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, file: Path | str, width: int, height: int = 900) -> None:
        """Load a file or address in a window of that width, in CSS pixels, and wait until all of it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self._events.clear()
        self.call("Page.navigate", url=file if isinstance(file, str) else file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        self.evaluate("document.fonts.ready.then(() => 1)")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def take_screenshot(self, *, whole: bool = True) -> bytes:
        """Return a PNG of the whole page, or of what the window shows."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    def print_pdf(self) -> bytes:
        """Return the page as an A4 PDF, as printing would give it."""
        printed = self.call("Page.printToPDF", preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser has said nothing for {PATIENCE_S:g} s"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        if "method" in told:
            self._events.append(told)
            self._note(told["method"], told["params"])
        return told

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.loadingFailed":
            self.complaints.append(params["errorText"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(self.own):
                self.complaints.append(f"asked for {url[:80]}")


def open_pipe() -> list[int]:
    """Open a pipe whose ends are far from the descriptors 3 and 4 that the browser speaks through."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


@contextmanager
def open_browser(profile: Path, *more: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own and more options, and end it."""
    command_read, command_write = open_pipe()
    answer_read, answer_write = open_pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={profile}", "--disable-dev-shm-usage", "--no-first-run", *more]
    # The browser reads commands from descriptor 3 and answers on descriptor 4.
    start = f'exec "$0" "$@" 3<&{command_read} 4>&{answer_write}'
    running = subprocess.Popen(
        ["bash", "-c", start, CHROMIUM, *options],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    try:
        yield Browser(answer_read, command_write)
    finally:
        running.terminate()
        running.wait(30)
        os.close(command_write)
        os.close(answer_read)

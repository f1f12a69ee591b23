"""A headless Chromium that tests talk to through a pipe: what a page did, and what its links and rows are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
QUIET = 0.15  # seconds without an event after which a page is taken to be done


class Browser:
    """One window. `open` starts anew; `requests`, `dialogs` and `refused` are of the page that is open."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp()
        to_browser, self.sending = os.pipe()
        self.receiving, from_browser = os.pipe()
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        words = ["bash", "-c", script, "bash", str(PROGRAM), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            words, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self.receiving, False)
        self.buffer, self.events, self.number, self.session = b"", [], 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Target.setDiscoverTargets", discover=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.sending)
        os.close(self.receiving)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer is None:
                raise TimeoutError(method)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, hash: str = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self._settle()
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri() + (f"#{hash}" if hash else ""))
        self.wait_until(lambda: self._seen("Page.loadEventFired"), f"{path} does not load")
        self._settle()

    def wait_until(self, condition: Callable[[], Any], failure: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, failure
            if event := self._receive(1):
                self.events.append(event)

    def evaluate(self, script: str) -> Any:
        """The value of a script, which the page's policy does not restrict."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        self._settle()
        return answer["result"].get("value")

    @property
    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self._seen("Network.requestWillBeSent")]

    @property
    def dialogs(self) -> list[dict[str, Any]]:
        return [*self._seen("Page.javascriptDialogOpening"), *self._seen("Page.windowOpen")]

    @property
    def refused(self) -> list[str]:
        """What the page's policy forbade."""
        return [event["entry"]["text"] for event in self._seen("Log.entryAdded")]

    def _seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def _settle(self) -> None:
        while event := self._receive(QUIET):
            self.events.append(event)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            try:
                piece = os.read(self.receiving, 2**20)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.005)
                continue
            if not piece:
                raise EOFError("the browser ended")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

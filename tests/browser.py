"""A headless Chromium for tests, driven over a pipe by its own protocol: only the browser has to be installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe"),
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowRight": 39}


def installed() -> str | None:
    """Return the path of a Chromium of this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One page of a browser that ends with the `with` block."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, to_browser = os.pipe(), os.pipe()
        self._number = 0

        def connect() -> None:  # it reads commands from 3 and answers on 4
            for fd, wanted in ((os.dup(to_browser[0]), 3), (os.dup(ours[1]), 4)):
                os.dup2(fd, wanted)

        self._process = subprocess.Popen(
            [program, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(ours[1])
        self._write, self._read = os.fdopen(to_browser[1], "wb"), os.fdopen(ours[0], "rb")
        self._left, self._session, self.errors = b"", "", list[str]()

    def __enter__(self) -> Chromium:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and return its result; notes errors of the page that are told meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._left:
            part = os.read(self._read.fileno(), 1 << 20)
            assert part, "the browser ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a file at a width, in px, with all of its pictures."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not self.ask("location.protocol === 'file:' && document.readyState === 'complete'"):
            time.sleep(0.02)
        pictures = "[...document.images].filter(one => one.getAttribute('src'))"
        self.ask(f"Promise.all({pictures}.map(one => {{ one.loading = 'eager'; return one.decode() }})).then(() => 1)")

    def ask(self, script: str) -> Any:
        """Return the value of an expression of JavaScript, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after the other, by their names or as characters."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        made = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(made["data"])

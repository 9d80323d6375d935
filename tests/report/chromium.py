"""Chromium without a window, driven by its DevTools protocol over a pipe: the standard library is enough for it.

The messages are JSON, each ended by a zero byte (chromedevtools.github.io/devtools-protocol).
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_TOLD = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")


class Browser:
    """A browser with one tab.

    Args:
        profile: an empty folder for its files.
    """

    def __init__(self, profile):
        pipes = [os.pipe(), os.pipe()]
        # Not 3 and 4 before it: the second of dup2 could overwrite what the first is to copy.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (pipes[0][0], pipes[1][1])]

        def placed():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        self._process = subprocess.Popen(
            [PROGRAM, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=placed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (pipes[0][0], pipes[1][1], *theirs):
            os.close(fd)
        self._write, self._read = pipes[0][1], pipes[1][0]
        self._buffer, self._numbers, self._session, self.events = b"", itertools.count(1), {}, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        number = next(self._numbers)
        data = json.dumps({"id": number, "method": method, "params": params} | self._session).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], 60)[0], "Chromium does not answer"
            data = os.read(self._read, 2**20)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1280, height=900):
        """Open a file and wait until it is loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def js(self, code):
        """The value of an expression in the page; a promise's is waited for."""
        answer = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, code):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + 30
        while not (value := self.js(code)):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.01)
        return value

    def messages(self):
        """What the page has said, in errors, dialogs and on the console."""
        self.js("1")  # what has come before its answer is among the events
        return [event for event in self.events if event["method"] in _TOLD]

    def requested(self):
        """The addresses that were asked for, but for those that hold their own content."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def key(self, name):
        code = {"text": name} if len(name) == 1 else {}
        numbers = {"ArrowDown": 40, "ArrowUp": 38, "PageDown": 34, "PageUp": 33, "Home": 36, "End": 35, "Tab": 9}
        number = numbers.get(name, ord(name[0]))
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=number, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=number)

    def mouse(self, kind, x, y, **more):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x, y, clicks=1):
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=clicks, buttons=int(kind == "mousePressed"))

    def picture(self):
        """A PNG of what is seen."""
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def close(self):
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)

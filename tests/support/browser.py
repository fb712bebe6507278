"""A real server and a real browser for tests of what people see.

Playwright's synchronous API needs a thread without an event loop, and its objects stay in the
thread that made them: there is one such thread, and `on_browser_thread` runs things in it.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from tests.support.servers import free_port, system_binary

P = ParamSpec("P")
T = TypeVar("T")

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_ACTION_TIMEOUT_MS = 10_000

_CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_thread = ThreadPoolExecutor(1, thread_name_prefix="browser")


def on_browser_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Runs the function in the browser's thread and waits for it."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return _thread.submit(function, *args, **kwargs).result()

    return run


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium with a fresh profile: a `playwright.sync_api.Browser`."""
    from playwright.sync_api import expect, sync_playwright

    path = system_binary("chromium")
    expect.set_options(timeout=_ACTION_TIMEOUT_MS)
    starting, playwright = sync_playwright(), None
    try:
        playwright = on_browser_thread(starting.start)()
        launch = on_browser_thread(playwright.chromium.launch)
        browser = launch(executable_path=path, headless=True, args=list(_CHROMIUM_ARGUMENTS))
        yield browser
        on_browser_thread(browser.close)()
    finally:
        if playwright is not None:
            on_browser_thread(playwright.stop)()


def server_command(port: int) -> list[str]:
    """What starts the server as an installation without configuration does."""
    twistd = Path(sys.executable).with_name("twistd")
    return [str(twistd), "-n", "peloton", "--listen", f"tcp:{port}:interface=127.0.0.1"]


class DemoServer:
    """The server in a process of its own, in its own folder, always on the same port.

    Args:
        folder: where it runs and where its log goes.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "server.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the demo page is served."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                server_command(self.port), cwd=self._folder, stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail(f"the server does not come up:\n{self.log.read_text()[-4000:]}")
            # A process from outside tells nothing when it is ready: it must be asked.
            time.sleep(0.05)

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """Kills it with no chance to say goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in order, if it runs."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the server does not end:\n{self.log.read_text()[-4000:]}")


@contextmanager
def demo_server(folder: Path) -> Iterator[DemoServer]:
    """A running server that ends with the block."""
    server = DemoServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()

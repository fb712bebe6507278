"""`examples/counter.py` in Chromium: a page that grows while it loads, until its tab is closed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest_twisted
from playwright.sync_api import Browser, expect
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.support.browser import chromium, on_browser_thread
from tests.support.programs import Program
from tests.support.servers import eventually, free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "counter.py"


@on_browser_thread
def watch(browser: Browser, url: str) -> None:
    """Opens the page, sees it count, and closes the tab."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    expect(page.get_by_role("heading")).to_have_text("Hello from Peloton")
    page.get_by_role("link", name="Count").click(no_wait_after=True)
    number = page.locator("#foo")
    expect(number).to_have_text("1")
    expect(number).to_have_text(re.compile(r"^([2-9]|\d\d+)$"))
    assert page.evaluate("document.readyState") == "loading"
    assert problems == []
    page.close()


@pytest_twisted.ensureDeferred
async def test_the_number_grows_and_the_count_ends_with_the_tab(tmp_path: Path) -> None:
    port = free_port()
    example = Program(reactor, folder=tmp_path, command=(sys.executable, str(EXAMPLE), str(port)))
    example.child.start()
    try:
        await eventually(reactor, lambda: "Listening on" in example.output, timeout_s=20)
        with chromium() as browser:
            await deferToThread(watch, browser, f"http://127.0.0.1:{port}/")
            await eventually(reactor, lambda: "the browser has gone" in example.output)
            assert example.output.count("the browser has gone") == 1
    finally:
        await example.stop()
    assert "Traceback" not in example.output

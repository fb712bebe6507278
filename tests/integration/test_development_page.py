"""Development mode in Chromium: an open page of broken code becomes the mended one by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.support.browser import chromium, on_browser_thread
from tests.support.programs import PelotonServer

CONFIG = """
[server]
development = true
[broker]
url = "memory:"
[web]
app = "shop:app"
"""

MENDED = """
from pelotontx.web import App, html

app = App()


@app.get("/orders")
def orders(request):
    return html("<h1>Orders</h1>")
"""

#: The server starts twice meanwhile, and may have little of the machine.
TURN_MS = 60_000


def write(folder: Path, text: str) -> None:
    path = folder / "shop.py"
    path.write_text(text)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))  # file systems tick slowly


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@on_browser_thread
def mend(browser: Any, url: str, folder: Path) -> None:
    """Looks at one page, and edits beside it."""
    from playwright.sync_api import expect

    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"{url}/orders")
    heading, details = page.get_by_role("heading"), page.locator("pre")
    assert answer.status == 500
    expect(heading).to_contain_text("ZeroDivisionError")
    lines = details.inner_text().splitlines()
    assert "shop.py" in lines[1]  # the user's code comes first
    write(folder, "import no_such_thing\n")
    expect(heading).to_contain_text("no_such_thing", timeout=TURN_MS)
    write(folder, MENDED)
    expect(heading).to_have_text("Orders", timeout=TURN_MS)
    expect(details).to_have_count(0)
    context.close()


@pytest_twisted.ensureDeferred
async def test_it_shows_the_next_error_and_then_the_page(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "peloton.toml").write_text(CONFIG)
    write(tmp_path, "1 / 0\n")
    server = PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path)
    async with server:
        await deferToThread(mend, browser, server.url, tmp_path)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest_twisted.ensureDeferred
async def test_a_long_error_sticks_out_nowhere(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    (tmp_path / "peloton.toml").write_text(CONFIG)
    write(tmp_path, f"def load():\n    raise ValueError('a {'long' * 60} error')\n\n\nload()\n")
    server = PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path)
    async with server:
        await deferToThread(look, browser, server.url, width, scheme)


@on_browser_thread
def look(browser: Any, url: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    assert "ValueError" in page.get_by_role("heading").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if folder := os.environ.get("PELOTON_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/broken-{width}-{scheme}.png")
    context.close()

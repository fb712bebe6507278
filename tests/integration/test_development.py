"""Development mode on the running program: edit, look, mend, look again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.programs import PelotonServer
from tests.support.servers import eventually

PAGE = """
from pelotontx.web import App, html

app = App()


@app.get(r"^/$")
def index(request):
    return html("<h1>{text}</h1>")
"""

CONFIG = """
[server]
development = true
[broker]
url = "memory:"
[web]
app = "shop:app"
"""


class Project:
    """A project of two files, and the server that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("shop.py", PAGE.format(text="one"))
        self.write("peloton.toml", CONFIG)
        self.server = PelotonServer(reactor, "--config", "peloton.toml", folder=folder)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))  # file systems tick slowly

    async def page(self) -> tuple[int, str]:
        status, body = await self.server.get("/")
        return status, body.decode()

    async def shows(self, status: int, text: str) -> None:
        """Asks until the page is that, for at most 300 answers."""
        for _ in range(300):
            found, body = await self.page()
            if found == status and text in body:
                return
            await deferLater(reactor, 0.1)
        pytest.fail(f"{found} {body}\n{self.server.output}")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_changed_file_is_served_by_the_same_process(project: Project) -> None:
    async with project.server as server:
        pid = server.child.pid
        assert (await project.page()) == (200, "<h1>one</h1>")
        project.write("shop.py", PAGE.format(text="two"))
        await project.shows(200, "<h1>two</h1>")
        project.write("shop.py", PAGE.format(text="three"))
        await project.shows(200, "<h1>three</h1>")
        assert server.child.pid == pid
        # Compiled code could be taken for that of another change in the same second.
        assert not (project.folder / "__pycache__").exists()


@pytest_twisted.ensureDeferred
async def test_code_that_does_not_load_is_shown_until_it_is_mended(project: Project) -> None:
    async with project.server:
        project.write("shop.py", PAGE.format(text="two") + "\ndef <")
        await project.shows(500, "SyntaxError")
        project.write("shop.py", "import no_such_thing")
        await project.shows(500, "No module named &#x27;no_such_thing&#x27;")
        project.write("shop.py", PAGE.format(text="three"))
        await project.shows(200, "<h1>three</h1>")


@pytest_twisted.ensureDeferred
async def test_a_server_can_start_with_broken_code(project: Project) -> None:
    project.write("shop.py", "1 / 0")
    async with project.server:
        await project.shows(500, "ZeroDivisionError")
        project.write("shop.py", PAGE.format(text="well"))
        await project.shows(200, "<h1>well</h1>")


@pytest_twisted.ensureDeferred
async def test_a_broken_configuration_leaves_the_server_as_it_is(project: Project) -> None:
    async with project.server as server:
        project.write("peloton.toml", CONFIG + "\n[http]\nbody_limit = 'much'\n")
        await eventually(reactor, lambda: "goes on as it is" in server.output, timeout_s=30)
        assert "http.body_limit" in server.output
        assert (await project.page()) == (200, "<h1>one</h1>")
        project.write("peloton.toml", CONFIG + "\n[http]\nbody_limit = '2MiB'\n")
        await eventually(reactor, lambda: "starting again" in server.output, timeout_s=30)
        await project.shows(200, "<h1>one</h1>")


@pytest_twisted.ensureDeferred
async def test_nobody_is_refused_while_it_starts_again(project: Project) -> None:
    """Every request gets an answer; `get` raises for a connection that is refused."""
    async with project.server as server:
        project.write("shop.py", PAGE.format(text="two"))
        deadline_s = reactor.seconds() + 60
        bodies = [(await project.page())[1]]
        while bodies[-1] != "<h1>two</h1>":
            bodies.append((await project.page())[1])
            assert reactor.seconds() < deadline_s, server.output
        assert set(bodies) == {"<h1>one</h1>", "<h1>two</h1>"}


@pytest_twisted.ensureDeferred
async def test_in_production_nothing_is_watched(project: Project) -> None:
    project.write("peloton.toml", CONFIG.replace("true", "false"))
    async with project.server as server:
        assert (await project.page()) == (200, "<h1>one</h1>")
    assert "Watching" not in server.output

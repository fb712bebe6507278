"""Development mode: what counts as a change, and what stands for code that does not load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from pelotontx.net.http import Request, Response
from pelotontx.services.development import LOOK_S, Reloader, broken, look
from pelotontx.wire.http import Framing


class Project:
    """A folder that is watched."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder = folder
        self.clock = Clock()
        self.changes: list[list[str]] = []
        self._second = 1_000_000_000
        self._files = files

    def watch(self) -> None:
        self.reloader = Reloader(
            self.clock, folder=str(self.folder), files=self._files, in_thread=maybeDeferred
        )
        self.reloader.start(self.changes.append)

    def write(self, name: str, text: str = "") -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        self._second += 1
        os.utime(path, (self._second, self._second))
        return os.path.realpath(path)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(LOOK_S)


def request(method: str) -> Any:
    framing = Framing("1.1", b"localhost", 0, True, False, b"")
    head = b"%b /any/where HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode()
    return Request(None, method, ("/any/where", "/any/where", ""), framing, head)


def test_a_change_is_told_once_it_has_settled(tmp_path: Path) -> None:
    project = Project(tmp_path)
    web = project.write("shop/web.py")
    project.watch()
    project.look()
    project.write("shop/web.py", "a = 1")
    project.look()
    project.write("shop/web.py", "a = 12")
    project.look()
    assert project.changes == []
    project.look(3)
    assert project.changes == [[web]]


def test_new_and_removed_files_are_changes_and_further_ones_are_told_too(tmp_path: Path) -> None:
    project = Project(tmp_path)
    old = project.write("old.py")
    project.watch()
    new = project.write("new.py")
    project.look(2)
    os.remove(old)
    project.look(2)
    assert project.changes == [[new], [old]]


def test_the_configuration_is_watched_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    path = tmp_path / "peloton.toml"
    path.write_text("")
    project = Project(tmp_path / "project", str(path))
    project.watch()
    path.write_text("[server]")
    project.look(2)
    assert project.changes == [[os.path.realpath(path)]]


def test_hidden_folders_environments_and_other_files_are_not_watched(tmp_path: Path) -> None:
    project = Project(tmp_path)
    seen = project.write("web.py")
    for name in (".git/hook.py", "venv/pyvenv.cfg", "venv/lib/a.py", "node_modules/b.py", "c.txt"):
        project.write(name)
    inside = [path for path in look(str(tmp_path), ()) if path.startswith(str(tmp_path))]
    assert inside == [seen]


def test_who_is_told_may_stop_it(tmp_path: Path) -> None:
    project = Project(tmp_path)
    reloader = Reloader(project.clock, folder=str(tmp_path), in_thread=maybeDeferred)
    stops: list[Deferred[Any]] = []
    reloader.start(lambda _: stops.append(reloader.stop()))
    project.write("web.py")
    project.look(2)
    assert [stop.called for stop in stops] == [True]


def test_nothing_is_looked_at_after_the_stop(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.watch()
    project.reloader.stop()
    assert not project.clock.getDelayedCalls()


def test_code_that_does_not_load_is_answered_for_everywhere() -> None:
    try:
        compile("def <", "shop/web.py", "exec")
    except SyntaxError as error:
        app = broken(error)
    for method in ("GET", "POST", "DELETE"):
        answer = app.handle(request(method))
        assert isinstance(answer, Response)
        assert answer.status == 500
        assert isinstance(answer.body, bytes)
        assert b"SyntaxError" in answer.body
        assert b"def &lt;" in answer.body

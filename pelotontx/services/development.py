"""Development mode: the server starts again when a file changes, and shows why it could not.

Starting again means `exec`: the same process, the same terminal, no state of the old code. The
listening sockets stay open meanwhile, so that a browser which comes too early waits instead of
being refused. Code that does not load is answered for with its traceback, on every path; the page
looks by itself whether the next change has mended it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

import pelotontx
from pelotontx.config import Config, WebConfig
from pelotontx.errors import ConfigError
from pelotontx.flow import Tasks, later
from pelotontx.net.inherited import keep_open
from pelotontx.services.build import build
from pelotontx.services.phases import Phase, Server
from pelotontx.web import App, Request, Response
from pelotontx.wire.http import METHODS

#: How often files are looked at: soon enough for whoever has just saved one.
LOOK_S: Final = 0.5

#: A project has fewer files; a home directory that was taken for one has more.
FILES_LIMIT: Final = 20_000

#: What a stop waits for those who are connected, at most.
DRAIN_S: Final = 1.0

#: What a stop may take altogether. Then the next server starts all the same.
STOP_S: Final = 10.0

#: What is never part of a project's own code.
_FOREIGN: Final = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})

_OURS: Final = os.path.join(os.path.dirname(pelotontx.__file__), "")

_log = Logger()

Snapshot = dict[str, tuple[int, int]]


def python_files(folder: str) -> Iterator[str]:
    """The Python files below a folder, without hidden folders and virtual environments."""
    for path, folders, names in os.walk(folder):
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name not in _FOREIGN and name[:1] != "."]
        yield from (os.path.join(path, name) for name in names if name.endswith(".py"))


def imported_files() -> Iterator[str]:
    """The files of imported modules, but for those that were installed."""
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and not _FOREIGN.intersection(Path(path).parts) and not _is_pythons(path):
            yield path


def _is_pythons(path: str) -> bool:
    return path.startswith((os.path.dirname(os.__file__) + os.sep, sys.prefix + os.sep))


def look(folder: str, files: Iterable[str]) -> Snapshot:
    """When each file was changed last, and its size; files that are gone are left out."""
    found: Snapshot = {}
    for path in (*files, *imported_files(), *python_files(folder)):
        if len(found) >= FILES_LIMIT:
            break
        try:
            status = os.stat(path)
        except OSError:
            continue
        found[os.path.realpath(path)] = (status.st_mtime_ns, status.st_size)
    return found


class Reloader:
    """Watches files from now on, and tells when some have changed. Make it before code is loaded.

    Args:
        clock: a reactor.
        folder: the project: what is new in it counts as a change.
        files: further ones, such as the configuration.
        in_thread: where files are looked at.
    """

    def __init__(
        self,
        clock: Any,
        *,
        folder: str,
        files: Iterable[str] = (),
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
    ) -> None:
        self._clock = clock
        self._folder = folder
        self._files = tuple(files)
        self._in_thread = in_thread
        self._tasks = Tasks()
        self._before = look(folder, self._files)

    def start(self, tell: Callable[[list[str]], object]) -> None:
        """Has `tell` called with the paths that have changed, when they have stopped changing."""
        self._tasks.spawn(self._watch(tell))

    def stop(self) -> Deferred[Any]:
        """Fires when nothing is watched any more."""
        return self._tasks.stop()

    async def _watch(self, tell: Callable[[list[str]], object]) -> None:
        latest = before = self._before
        _log.info("Watching {count} files: the server starts again on a change", count=len(before))
        changed: list[str] = []
        while True:
            await later(self._clock, LOOK_S)
            now: Snapshot = await self._in_thread(look, self._folder, self._files)
            if now != latest:  # an editor, or a checkout, may be at work still
                latest = now
                changed = _differing(before, now, self._folder)
            elif changed:
                # Not from in here: who is told stops us, and a coroutine cannot end while it runs.
                self._clock.callLater(0, tell, changed)
                before, changed = now, []


def _differing(before: Snapshot, now: Snapshot, folder: str) -> list[str]:
    """What was changed, and what is new in the folder: elsewhere it was only imported meanwhile."""
    inside = os.path.join(os.path.realpath(folder), "")
    changed = [path for path in before if before[path] != now.get(path)]
    return sorted([*changed, *(p for p in now if p not in before and p.startswith(inside))])


def broken(error: BaseException) -> App:
    """An app that answers everything with what kept the program from loading.

    The page asks for itself again every second, and shows the real one once it is there.
    """
    shown = traceback.TracebackException(type(error), error, _users_part(error))
    failure = "".join(shown.format())
    app = App(development=True)
    page = _PAGE.format(
        title=escape(f"{type(error).__name__}: {error}"), details=escape(failure), mark=_MARK
    )

    def show(request: Request) -> Response:
        return Response(
            500,
            page.encode(),
            {_MARK: "1", "Cache-Control": "no-store"},
            "text/html; charset=utf-8",
        )

    for method in METHODS.values():
        app.route(method, "^")(show)
    return app


def _users_part(error: BaseException) -> TracebackType | None:
    """The traceback from the user's code on: how we came there does not help to mend it."""
    found = error.__traceback__
    while found is not None and _is_on_the_way(found.tb_frame.f_code.co_filename):
        found = found.tb_next
    if found is None and not isinstance(error, SyntaxError):  # which tells its place by itself
        return error.__traceback__
    return found


def _is_on_the_way(path: str) -> bool:
    return path.startswith((_OURS, "<frozen importlib")) or path == importlib.__file__


def build_reloading(
    config: Config,
    *,
    reactor: Any,
    files: Iterable[str] = (),
    check: Callable[[], object] = lambda: None,
    **hooks: Any,
) -> Server:
    """`build` of a server that starts again when something has changed.

    If the user's code does not load, of a server that says so.

    Args:
        config: checked.
        reactor: everything lives on it.
        files: what is watched besides the project, the folder that we are in.
        check: raises `ConfigError` when it is of no use to start again: that is logged.
        hooks: `build`'s.
    """
    # A page that streams for ever, or a WebSocket, must not hold up who has just saved a file.
    drain_s = min(config.server.drain_timeout_s, DRAIN_S)
    config = replace(config, server=replace(config.server, drain_timeout_s=drain_s))
    reloader = Reloader(reactor, folder=os.getcwd(), files=files)
    # Python takes compiled code for that of a file which has changed within the same second.
    sys.dont_write_bytecode = True
    try:
        server = build(config, reactor=reactor, **hooks)
    except Exception as error:  # the user's code
        _log.failure("The code does not load")
        server = build(_without_code(config), reactor=reactor, instead=broken(error), **hooks)
    again = _Again(reactor, server, check)
    server.add(Phase("reloader", start=partial(reloader.start, again.start), stop=reloader.stop))
    return server


def _without_code(config: Config) -> Config:
    rpc = replace(config.rpc, gateway="")
    return replace(config, web=WebConfig(), rpc=rpc, callee=(), mount=())


class _Again:
    """Stops a server, and becomes the next one: the same command line, on the same sockets."""

    def __init__(self, reactor: Any, server: Server, check: Callable[[], object]) -> None:
        self._reactor = reactor
        self._server = server
        self._check = check
        self._stopping: Deferred[Any] | None = None

    def start(self, changed: list[str]) -> None:
        """Begins, unless it has begun already."""
        if self._stopping is not None:
            return
        try:
            self._check()
        except ConfigError as error:
            _log.error("The server goes on as it is: {error}", error=error)
            return
        names = ", ".join(os.path.relpath(path) for path in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        _log.info("{names}{more} changed: starting again", names=names, more=more)
        keep_open(self._server.ports)
        self._stopping = self._server.stopService()
        deadline = self._reactor.callLater(STOP_S, self._execute)
        self._stopping.addBoth(lambda _: (deadline.cancel(), self._execute()))

    def _execute(self) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_MARK: Final = "X-Peloton-Broken"

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2530; --soft: #5c6876; --paper: #f7f8fa;
  --panel: #fff; --edge: #dde2e8; --alarm: #b3261e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ecf1; --soft: #9aa7b5; --paper: #14181d; --panel: #1b2128; --edge: #2b333c;
    --alarm: #ff8a80; }}
}}
body {{ margin: 0; color: var(--ink); background: var(--paper);
  font: 1rem/1.6 system-ui, sans-serif; }}
main {{ padding: 2rem; max-width: 70rem; margin: auto; box-sizing: border-box; }}
h1 {{ margin: 0 0 .25em; font-size: 1.5rem; line-height: 1.3; color: var(--alarm);
  overflow-wrap: anywhere; }}
p {{ margin: 0; color: var(--soft); }}
pre {{ margin: 1.5rem 0 0; padding: 1rem; overflow: auto; background: var(--panel);
  border: 1px solid var(--edge); border-radius: .5rem; font-size: .85rem; line-height: 1.45; }}
</style>
</head>
<body><main>
<h1>{title}</h1>
<p>The code does not load. Save a change, and this page shows what has come of it.</p>
<pre>{details}</pre>
</main>
<script type="module">
const shown = document.querySelector("pre").textContent;
for (;;) {{
  await new Promise((done) => setTimeout(done, 1000));
  try {{
    const answer = await fetch(location.href, {{cache: "no-store"}});
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const same = answer.headers.has("{mark}") && page.querySelector("pre").textContent === shown;
    if (!same) location.reload();
  }} catch {{ /* it is starting */ }}
}}
</script>
</body>
</html>
"""

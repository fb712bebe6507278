"""`peloton client`: the terminal, or a script on stdin, around `shell.Shell`.

prompt_toolkit lives on asyncio, so this command, alone, runs on Twisted's asyncio reactor: the
prompt and the connections share one loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout
from twisted.internet import asyncioreactor
from twisted.internet.defer import CancelledError, Deferred

from pelotontx.cli.running import INTERRUPTED, run_main
from pelotontx.cli.shell import Exit, Shell, Show
from pelotontx.flow import later

_COLOURS: Final = {
    "ACK": "32",
    "RES": "36",
    "EVNT": "35",
    "OPEN": "1;32",
    "NACK": "31",
    "EXP": "33",
    "LOST": "1;33",
    "CLOSED": "1;33",
    "BAD": "31",
    "error": "31",
}
# A line of a script; a longer one is not meant to be a command.
_LINE_LIMIT_BYTES: Final = 4 * 1024 * 1024
# Events that a script's last commands caused come in this time.
_EVENTS_S: Final = 0.25


def run(url: str, *, connects: bool, raw: bool, timestamp: bool) -> int:
    """Reads and runs commands until ``exit`` or the end of the input.

    Args:
        url: what ``connect`` opens without an argument.
        connects: open it at once.
        raw: show messages as they came.
        timestamp: show the time of each line.

    Returns:
        the exit status: with a terminal 0; for a script 1 when a command failed.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    from twisted.internet import reactor

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    colours = interactive and "NO_COLOR" not in os.environ
    reader_gone: Deferred[None] = Deferred()
    shell = Shell(
        reactor=reactor,
        show=_until_broken(_show_in_colour if colours else _show, reader_gone),
        url=url,
        raw=raw,
        timestamp=timestamp,
    )
    first = ["connect"] if connects else []
    if not interactive:
        return run_main(reactor, lambda: _run_script(shell, first, reactor, reader_gone))
    # The prompt handles SIGINT itself; SIGTERM must not leave the terminal in raw mode.
    return run_main(reactor, lambda: _interact(shell, first, url, loop), handles_signals=False)


def _until_broken(show: Show, broken: Deferred[None]) -> Show:
    """Shows lines until nobody reads them, as behind `| grep -q`; then `broken` fires."""

    def show_if_read(head: str, kind: str, text: str) -> None:
        if broken.called:
            return
        try:
            show(head, kind, text)
        except BrokenPipeError:
            broken.callback(None)

    return show_if_read


def _show(head: str, kind: str, text: str) -> None:
    line = f"{head}{kind:<6} {text}" if kind else f"{head}{text}"
    print(line.rstrip(), flush=True)


def _show_in_colour(head: str, kind: str, text: str) -> None:
    colour = _COLOURS.get(kind)
    mark = f"\x1b[{colour}m{kind:<6}\x1b[0m " if colour else ""
    print(f"\x1b[2m{head}\x1b[0m{mark}{text}".rstrip(), flush=True)


async def _run_script(
    shell: Shell, first: list[str], reactor: Any, reader_gone: Deferred[None]
) -> int:
    script = Deferred.fromCoroutine(_run_lines(shell, first, reactor))
    # In a turn of its own: it may be the script itself that has just found out.
    reader_gone.addCallback(lambda _: reactor.callLater(0, script.cancel))
    try:
        return await script
    except CancelledError:
        raise BrokenPipeError from None


async def _run_lines(shell: Shell, first: list[str], reactor: Any) -> int:
    lines = _Lines(sys.stdin.fileno(), reactor)
    failed = False
    try:
        for line in first:
            failed |= not await shell.run(line)
        while (command := await lines.next()) is not None:
            failed |= not await shell.run(command)
        if shell.is_subscribed:
            await later(reactor, _EVENTS_S)
    except Exit:
        pass
    await shell.close_all()
    return int(failed)


class _Lines:
    """Lines of a file descriptor, read by a thread: a regular file cannot be polled.

    The thread is a daemon and holds no lock of Python's files while it waits, so that it hinders
    nobody who wants to leave.
    """

    def __init__(self, descriptor: int, reactor: Any) -> None:
        self._descriptor = descriptor
        self._reactor = reactor
        self._buffer = b""
        self._is_at_end = False

    async def next(self) -> str | None:
        """The next line without its end; None after the last."""
        while b"\n" not in self._buffer and not self._is_at_end:
            if len(self._buffer) > _LINE_LIMIT_BYTES:
                raise ValueError("a line of more than 4 MiB")
            data = await self._read()
            self._buffer += data
            self._is_at_end = not data
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def _read(self) -> Deferred[bytes]:
        result: Deferred[bytes] = Deferred()

        def read() -> None:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:
                data = b""
            self._reactor.callFromThread(result.callback, data)

        threading.Thread(target=read, daemon=True).start()
        return result


async def _interact(
    shell: Shell, first: list[str], url: str, loop: asyncio.AbstractEventLoop
) -> int:
    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=CommandCompleter(shell),
        complete_while_typing=False,
        bottom_toolbar=lambda: _toolbar(shell),
    )
    status = 0
    prompt: asyncio.Task[str] | None = None

    async def ask() -> str:
        try:
            return await session.prompt_async("> ")
        except KeyboardInterrupt:  # would end the loop if it left a task
            return ""

    def terminated() -> None:
        nonlocal status
        status = INTERRUPTED
        if prompt is not None:
            prompt.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminated)
    with patch_stdout(raw=True):
        print(f"help lists the commands; connect opens {url}")
        for line in first:
            _start(shell, line)
        while True:
            prompt = loop.create_task(ask())
            try:
                line = await Deferred.fromFuture(prompt)
            except (EOFError, asyncio.CancelledError):
                break
            if line.strip().lower() == "exit":
                break
            _start(shell, line)
        await shell.close_all()
    return status


def _start(shell: Shell, line: str) -> None:
    """Runs a command beside the prompt; what comes of it is shown."""
    Deferred.fromCoroutine(shell.run(line)).addErrback(lambda failure: failure.trap(Exit))


def _history() -> History:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "pelotontx"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "history"
        # Calls may carry what others should not read.
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def _toolbar(shell: Shell) -> str:
    links = [f"{number} {state} {url}" for number, state, url in shell.states]
    return " | ".join(links) or "not connected"


class CommandCompleter(Completer):
    """Commands for the first word; URIs, channels and URLs that were used for the others."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor.lstrip()
        word = before.rpartition(" ")[2]
        names: Iterable[str] = reversed(self._shell.seen) if " " in before else self._shell.commands
        for name in names:
            if name.startswith(word):
                yield Completion(f"{name} ", start_position=-len(word), display=name)

"""The access log: a line for each answer, written beside the reactor.

    log = AccessLog(reactor, "/var/log/peloton/access.log")
    log.start()
    HTTPFactory(handle, on_answered=log.answered, ...)

An answer costs a tuple. Lines are made of them a little later, when what was answered has left, and
written by a thread. What waits is bounded; past it lines are dropped and counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread
from time import localtime, time
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pelotontx.errors import ConfigError
from pelotontx.net.http import Request

#: For how long answers are collected.
BATCH_S: Final = 0.05

#: Answers that are made to lines in one go: about half a millisecond, and, as each keeps its head,
#: some MiB at the very most.
BATCH: Final = 250

#: Bytes of lines that may wait for the disk. Past it further ones are dropped: a disk that hangs
#: must not fill our memory, nor hold anybody up.
WAITING_BYTES: Final = 8 * 1024 * 1024

#: How long a stop waits for the disk.
STOP_S: Final = 5.0

_MONTHS: Final = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_FIELDS: Final = re.compile(rb"\r\n(referer|user-agent):[ \t]*([^\r\n]*)", re.IGNORECASE)
_INVISIBLE: Final = re.compile(rb"[^ -~]")
_UNSAFE: Final = re.compile(rb"[^ !#-\[\]-~]")  # quotes and backslashes too
_SAFE: Final = _UNSAFE.sub(b"", bytes(range(256)))

#: Client, method, target, version, the head's fields, status, bytes of body, its beginning and end.
_Entry = tuple[str, str, str, str, bytes, int, int, float, float]


class AccessLog:
    """Writes the access log; `answered` is for `HTTPFactory`.

    Args:
        reactor: its clock, and where the thread reports to.
        path: a file, which is appended to, or ``-`` for standard output.
        format: ``combined`` or ``json``.
        query: whether queries are written, those of referers too.
        wall_clock: seconds since the epoch.

    Attributes:
        written: lines that were given to the system.
        dropped: lines that were not.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        format: str = "combined",
        query: bool = True,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._reactor = reactor
        self._seconds = reactor.seconds
        self._wall_clock = wall_clock
        self._lines = _json if format == "json" else _combined
        self._query = query
        self._entries: list[_Entry] = []
        self._made: list[bytes] = []
        self._made_lines = self._made_bytes = 0
        self._timer: IDelayedCall | None = None
        self._dropped = 0
        self._file = _LogFile(path, self._write_failed)

    @property
    def written(self) -> int:
        """See the class."""
        return self._file.written

    @property
    def dropped(self) -> int:
        """See the class."""
        return self._dropped + self._file.dropped

    def start(self) -> None:
        """Opens the file.

        Raises:
            ConfigError: it cannot be opened; its `path` is the file.
        """
        self._file.start()

    def reopen(self) -> None:
        """Opens the file anew, as whoever moved it away asks for; it is noticed without, too."""
        self._file.reopen()

    def stop(self) -> Deferred[None]:
        """Writes what is left. Fires when it is written, or after `STOP_S`."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()
        stopped: Deferred[None] = Deferred()
        if not self._file.stop(lambda: self._reactor.callFromThread(_fire, stopped)):
            return succeed(None)
        stopped.addTimeout(STOP_S, self._reactor)
        return stopped.addErrback(lambda failure: failure.trap(TimeoutError) and None)

    def answered(self, request: Request, status: int, size: int, began_s: float) -> None:
        """Notes one answer."""
        entries = self._entries
        entries.append(
            (
                request.client,
                request.method,
                request.target,
                request.version,
                request.raw_head,
                status,
                size,
                began_s,
                self._seconds(),
            )
        )
        if self._timer is None:
            self._timer = self._reactor.callLater(BATCH_S, self._hand_over)
        elif len(entries) >= BATCH:
            self._make_lines()

    def _hand_over(self) -> None:
        """Gives what there is to the thread: few times a second, as each one wakes it."""
        self._timer = None
        self._make_lines()
        made, self._made = self._made, []
        lines, self._made_lines, self._made_bytes = self._made_lines, 0, 0
        if lines:
            self._file.write(b"".join(made), lines)

    def _make_lines(self) -> None:
        entries, self._entries = self._entries, []
        if self._made_bytes + self._file.waiting_bytes > WAITING_BYTES:
            self._dropped += len(entries)
            return
        epoch_s = self._wall_clock() - self._seconds()
        made = b"".join(self._lines(entries, epoch_s, query=self._query))
        self._made.append(made)
        self._made_bytes += len(made)
        self._made_lines += len(entries)

    def _write_failed(self, error: OSError) -> None:
        """In the thread."""
        self._reactor.callFromThread(
            self._log.error, "The access log cannot be written: {reason}", reason=error.strerror
        )


def _fire(deferred: Deferred[None]) -> None:
    if not deferred.called:
        deferred.callback(None)


class _LogFile:
    """A file that a thread of its own appends to.

    Numbers have one writer each: those of `dropped` and `written` are the thread's.
    """

    def __init__(self, path: str, on_failure: Callable[[OSError], None]) -> None:
        self._path = path
        self._on_failure = on_failure
        self._queue: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()
        self._descriptor = -1
        self._thread: Thread | None = None
        self._is_failing = False
        self._is_to_reopen = False
        self._on_stopped: Callable[[], object] = bool  # does nothing
        self._given_bytes = 0
        self._taken_bytes = 0
        self.dropped = 0
        self.written = 0

    @property
    def waiting_bytes(self) -> int:
        return self._given_bytes - self._taken_bytes

    def start(self) -> None:
        try:
            self._open()
        except OSError as error:
            raise ConfigError(self._path, f"cannot be opened: {error.strerror}") from None
        # Not waited for at the end of the process: a disk that hangs would hold it for ever.
        self._thread = Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def write(self, data: bytes, lines: int) -> None:
        self._given_bytes += len(data)
        self._queue.put((data, lines))

    def reopen(self) -> None:
        self._is_to_reopen = True
        self._queue.put((b"", 0))

    def stop(self, on_stopped: Callable[[], object]) -> bool:
        """Has the thread end behind what waits, and then call; False: there is none."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._on_stopped = on_stopped
            self._queue.put(None)
        return thread is not None

    # In the thread.

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            data, lines = batch
            self._append(data, lines)
            self._taken_bytes += len(data)
        self._close()
        self._on_stopped()

    def _append(self, data: bytes, lines: int) -> None:
        try:
            if self._is_to_reopen or self._has_moved():
                self._is_to_reopen = False
                self._close()
                self._open()
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self.dropped += lines
            if not self._is_failing:  # once, not for each batch
                self._on_failure(error)
            self._is_failing = True
        else:
            self._is_failing = False
            self.written += lines

    def _has_moved(self) -> bool:
        """Whether the path leads elsewhere by now: the file was rotated."""
        if self._path == "-":
            return False
        try:
            there, ours = os.stat(self._path), os.fstat(self._descriptor)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        if self._path == "-":
            self._descriptor = os.dup(1)  # sys.stdout is the log's under twistd
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o640)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _combined(entries: Iterable[_Entry], epoch_s: float, *, query: bool) -> Iterable[bytes]:
    r"""Lines as Apache and nginx write them, and the seconds that the answer took.

    What a client may choose is printed in visible ASCII; anything else of it, quotes and
    backslashes too, as ``\x22``.
    """
    second = -1
    for client, method, target, version, head, status, size, began_s, ended_s in entries:
        referer, agent = _quoted(head[head.find(b"\r\n") :], query)
        if not query:
            target = target.partition("?")[0]
        what = f"{method} {target} HTTP/{version}".encode() if method else b"-"
        if what.translate(None, _SAFE):
            what = _escaped(what)
        if int(epoch_s + ended_s) != second:
            second = int(epoch_s + ended_s)
            date = _date(second)
        yield b'%b - - [%b] "%b" %d %d "%b" "%b" %.3f\n' % (
            client.encode() or b"-",
            date,
            what,
            status,
            size,
            referer,
            agent,
            max(0.0, ended_s - began_s),
        )


def _json(entries: Iterable[_Entry], epoch_s: float, *, query: bool) -> Iterable[bytes]:
    r"""An object a line; what is not visible ASCII in the values is written as ``\x09``."""
    encode = msgspec.json.encode
    for client, method, target, version, head, status, size, began_s, ended_s in entries:
        referer, agent = _texts(head[head.find(b"\r\n") :], query)
        line = {
            "time": round(epoch_s + ended_s, 3),
            "client": client,
            "method": method,
            "target": target if query else target.partition("?")[0],
            "version": version,
            "status": status,
            "bytes": size,
            "seconds": round(max(0.0, ended_s - began_s), 6),
            "referer": referer,
            "user_agent": agent,
        }
        yield encode(line) + b"\n"


def _fields(fields: bytes, query: bool) -> tuple[bytes, bytes]:
    """Referer and User-Agent of a head's fields."""
    found = {name.lower(): value for name, value in reversed(_FIELDS.findall(fields))}
    referer = found.get(b"referer", b"")
    if not query:
        referer = referer.partition(b"?")[0]
    return referer, found.get(b"user-agent", b"")


# A client sends the same fields with many of its requests.
@lru_cache(256)
def _quoted(fields: bytes, query: bool) -> tuple[bytes, bytes]:
    """The same, as they stand in a line."""
    referer, agent = _fields(fields, query)
    return _escaped(referer) or b"-", _escaped(agent) or b"-"


@lru_cache(256)
def _texts(fields: bytes, query: bool) -> tuple[str, str]:
    """The same, as they stand in JSON."""
    referer, agent = (_escaped(value, _INVISIBLE) for value in _fields(fields, query))
    return referer.decode(), agent.decode()


def _escaped(text: bytes, unsafe: re.Pattern[bytes] = _UNSAFE) -> bytes:
    return unsafe.sub(lambda found: b"\\x%02x" % found[0][0], text)


def _date(epoch_s: int) -> bytes:
    """Local time as in ``21/Nov/2026:09:46:45 +0000``."""
    now = localtime(epoch_s)
    sign, minutes = ("-" if now.tm_gmtoff < 0 else "+"), abs(now.tm_gmtoff) // 60
    return b"%02d/%b/%d:%02d:%02d:%02d %b%02d%02d" % (
        now.tm_mday,
        _MONTHS[now.tm_mon - 1],
        now.tm_year,
        now.tm_hour,
        now.tm_min,
        now.tm_sec,
        sign.encode(),
        minutes // 60,
        minutes % 60,
    )


__all__ = ["AccessLog"]

"""Uploaded files: where they lie while a request is handled, and how they are kept.

A `DiskSink` is a server's: it writes files in threads of its own, into a folder of its own that is
gone when it stops; what a killed server has left there is removed by the next one. `web.forms`
writes parts to it; an `Upload` is what a handler gets.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from pelotontx.errors import LocalProtocolError
from pelotontx.net.threads import ThreadPool
from pelotontx.wire.multipart import PartHead, safe_filename

T = TypeVar("T")

#: Files up to this size never touch the disk.
MEMORY_BYTES: Final = 16 * 1024
#: So much is gathered before a thread is asked to write it.
_BLOCK_BYTES: Final = 128 * 1024
_COPY_BYTES: Final = 1024 * 1024
_THREADS: Final = 4
_PREFIX: Final = "peloton-uploads-"
# Between the making of a folder and its lock; far more than that takes.
_UNLOCKED_S: Final = 60.0


class Upload:
    """A file that a client has sent, until the end of the form that it came with.

    Attributes:
        filename: a name for it, safe in a folder; see `wire.multipart.safe_filename`. Two files of
            one form may have the same.
        raw_filename: what the client has written; may be a path, or anything else.
        content_type: what the client says that it is, ``image/png``; nothing has checked it.
        size_bytes: its length.
        path: where it lies; None while it is small and in memory.
    """

    def __init__(self, sink: DiskSink, head: PartHead, data: bytes, spool: _Spool) -> None:
        self._sink = sink
        self._data = data
        self._spool = spool
        self.raw_filename = head.filename or ""
        self.filename = safe_filename(self.raw_filename)
        self.content_type = head.content_type
        self.size_bytes = spool.size_bytes or len(data)
        self.path = spool.path

    def read(self) -> Deferred[bytes]:
        """All of it; at most as long as the form's limit."""
        if self.path is None:
            return succeed(self._data)
        return self._sink.run(self.path.read_bytes)

    def sha256(self) -> Deferred[str]:
        """Its SHA-256 in hexadecimal, computed in a thread."""
        return self._sink.run(partial(_sha256, self.path, self._data))

    def store(
        self, path: str | os.PathLike[str], *, replace: bool = False, mode: int = 0o644
    ) -> Deferred[None]:
        """Keeps it as `path`, durably: whole or not at all. Answer 201 after it has fired.

        On the file system of the sink's folder it is moved, on another one copied beside its new
        place and moved then; file and folder are on the disk when this fires. Cancelling does not
        end what a thread has begun: it may be stored or not, but not in part.

        Args:
            path: in a folder that exists.
            replace: a file that is there is overwritten; otherwise it is an error.
            mode: the permissions.

        Raises:
            FileExistsError: there is such a file.
            OSError: no such folder, no room, ...
            LocalProtocolError: it was stored before.
        """
        target = Path(path)
        place = partial(_place, target=target, replace=replace, mode=mode)
        storing = self._sink.run(partial(self._spool.move, self._data, target, place))

        def stored(_: None) -> None:
            self.path = target

        return storing.addCallback(stored)


class DiskWriter:
    """One file on its way to the disk; see `Writer`."""

    def __init__(self, sink: DiskSink, head: PartHead) -> None:
        self._sink = sink
        self._head = head
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._block_bytes = max(_BLOCK_BYTES, sink.memory_bytes + 1)
        self._spool = _Spool(sink.folder)

    async def write(self, data: bytes) -> None:
        """Appends; while a block is being written the writer waits."""
        self._pieces.append(data)
        self._gathered += len(data)
        if self._gathered >= self._block_bytes:
            await self._flush()

    async def close(self) -> Upload:
        """All was written."""
        if self._spool.path is None and self._gathered <= self._sink.memory_bytes:
            return Upload(self._sink, self._head, b"".join(self._pieces), self._spool)
        await self._flush()
        await self._sink.run(self._spool.close)
        return Upload(self._sink, self._head, b"", self._spool)

    async def discard(self) -> None:
        """Removes what was written, unless it was stored meanwhile."""
        self._pieces.clear()
        if self._spool.path is not None:
            await self._sink.run(self._spool.remove)

    async def _flush(self) -> None:
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        self._spool.settle()
        await self._sink.run(partial(self._spool.append, pieces))


class _Spool:
    """A temporary file. All but `settle` blocks and is for threads, of which one at a time works.

    A handler may be cancelled while a thread works for it: `remove` then waits for that thread, and
    what comes after it does nothing.
    """

    def __init__(self, folder: _Folder) -> None:
        self._folder = folder
        self._lock = Lock()
        self._descriptor = -1
        self._is_removed = False
        self.path: Path | None = None
        self.size_bytes = 0

    def settle(self) -> None:
        """Chooses the path."""
        if self.path is None:
            self.path = self._folder.path / token_hex(16)

    def append(self, pieces: list[bytes]) -> None:
        with self._lock:
            if self.path is None:  # discarded meanwhile
                return
            if self._descriptor < 0:
                self._folder.make()
                self._descriptor = _create(self.path)
            data = memoryview(b"".join(pieces))
            self.size_bytes += len(data)
            while data:
                data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def move(self, data: bytes, target: Path, place: Callable[[Path], None]) -> None:
        """Puts the file, or `data` if there is none, to where `place` says."""
        with self._lock:
            if self._is_removed:
                raise LocalProtocolError("this upload was stored already, or its form is over")
            if self.path is not None:
                try:
                    place(self.path)
                    self._is_removed, self.path = True, None
                    return
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
            beside = target.parent / f".{token_hex(8)}.part"
            try:
                self._copy(data, beside)
                place(beside)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            self._remove()

    def _copy(self, data: bytes, target: Path) -> None:
        with open(_create(target), "wb") as copy:
            if self.path is None:
                copy.write(data)
            else:
                with open(self.path, "rb") as source:
                    shutil.copyfileobj(source, copy, _COPY_BYTES)

    def remove(self) -> None:
        with self._lock:
            self._remove()

    def _remove(self) -> None:
        self._is_removed = True
        self._close()
        path, self.path = self.path, None
        if path is not None:
            path.unlink(missing_ok=True)


class _Folder:
    """A server's folder for temporary files, locked while the server lives.

    Args:
        base: where to make it; None: the system's folder for temporary files.
    """

    _log = Logger()

    def __init__(self, base: str | None) -> None:
        self._base = Path(base or tempfile.gettempdir()).absolute()
        self._lock = Lock()
        self._descriptor = -1
        self.path = self._base / (_PREFIX + token_hex(8))

    def make(self) -> None:
        """Makes it when it is first needed, and removes those of dead servers.

        And again after somebody who tidies up temporary files has taken it away.
        """
        with self._lock:
            if self._descriptor >= 0 and self.path.exists():
                return
            self._unlock()
            self.path.mkdir(0o700, exist_ok=True)
            self._descriptor = _locked(self.path)
            for other in self._base.glob(f"{_PREFIX}*"):
                if other != self.path:
                    with suppress(OSError):  # in use, or another user's
                        self._sweep(other)

    def _sweep(self, other: Path) -> None:
        if time.time() - other.lstat().st_mtime < _UNLOCKED_S:
            return
        descriptor = _locked(other)
        try:
            shutil.rmtree(other)
            self._log.info("Removed {path}, left behind by a dead server", path=str(other))
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """With all that is in it; safe to call twice."""
        with self._lock:
            if self._descriptor >= 0:
                shutil.rmtree(self.path, ignore_errors=True)
                self._unlock()

    def _unlock(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class DiskSink:
    """Writes uploads to the disk, in threads of its own.

    At most 128 KiB (or `memory_bytes`) and one piece of each upload are in memory; the client waits
    meanwhile.

    Args:
        reactor: is told of what threads have done.
        folder: where the temporary files lie; best on the file system where uploads are kept,
            since there storing is only a move. None: the system's folder for temporary files.
        memory_bytes: files up to this size stay in memory.
        threads: that write at a time.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        *,
        folder: str | None = None,
        memory_bytes: int = MEMORY_BYTES,
        threads: int = _THREADS,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.folder = _Folder(folder)
        self._is_stopped = False
        self._threads: ThreadPool[None] = ThreadPool(reactor, threads, name="uploads")

    async def open(self, head: PartHead) -> DiskWriter:
        """A writer for one file."""
        return DiskWriter(self, head)

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Calls a function that blocks; cancelled, it is called none the less."""
        if self._is_stopped:
            return fail(LocalProtocolError("the server takes no uploads any more"))
        result: Deferred[T] = Deferred()

        def done(value: T, error: BaseException | None) -> None:
            if error is None:
                result.callback(value)
            else:
                result.errback(error)

        self._threads.run(None, function, done)
        return result

    def stop(self) -> Deferred[None]:
        """Removes the folder and ends the threads; when no upload is under way any more."""
        removing = self.run(self.folder.remove)
        self._is_stopped = True

        def removed(_: None) -> None:
            self._threads.stop()

        return removing.addCallback(removed)


F_co = TypeVar("F_co", covariant=True)


class Writer(Protocol[F_co]):
    """Takes one file."""

    async def write(self, data: bytes) -> None:
        """Appends; waits while it cannot take more."""
        ...

    async def close(self) -> F_co:
        """All was written; what a handler finds in ``form.files``."""
        ...

    def discard(self) -> Coroutine[Deferred[Any], Any, None]:
        """Nothing of it is to stay, unless the handler has kept it. After `close` too."""
        ...


class Sink(Protocol[F_co]):
    """Where files go while a form is read."""

    def open(self, head: PartHead) -> Awaitable[Writer[F_co]]:
        """A writer for a part."""
        ...


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _locked(folder: Path) -> int:
    """Locks a folder for as long as its descriptor is open; BlockingIOError: somebody has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _place(source: Path, *, target: Path, replace: bool, mode: int) -> None:
    """Moves a file within its file system, durably."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if replace:
        source.replace(target)
    else:
        os.link(source, target)  # unlike rename(2) it overwrites nothing
        source.unlink()
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(path: Path | None, data: bytes) -> str:
    if path is None:
        return hashlib.sha256(data).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

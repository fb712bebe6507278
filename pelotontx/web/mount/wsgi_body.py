"""What a WSGI application reads, and what it answers with a file or writes to its log."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO

from twisted.logger import Logger


class BodyUnreadable(OSError):
    """The rest of a body will not come: it is refused, or its client has gone."""


class Input(io.RawIOBase):
    """A body that is fetched piece by piece; beneath an `io.BufferedReader`.

    Args:
        pieces: what is there already.
        fetch: waits for the next piece; empty at the end. Raises `BodyUnreadable`.
    """

    def __init__(self, pieces: list[bytes], fetch: Callable[[], bytes]) -> None:
        super().__init__()
        self._piece = memoryview(b"".join(pieces))
        self._fetch = fetch
        self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece and not self._is_over:
            self._piece = memoryview(self._fetch())
            self._is_over = not self._piece
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size


class FileWrapper:
    """``wsgi.file_wrapper``: a file as an answer, sent by the kernel if it is one of the disk."""

    def __init__(self, file: BinaryIO, block_bytes: int = 64 * 1024) -> None:
        self.file = file
        self._block_bytes = block_bytes

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        piece = self.file.read(self._block_bytes)
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        close = getattr(self.file, "close", None)
        if close is not None:
            close()


class Errors(io.TextIOBase):
    """``wsgi.errors``: each line becomes a line of the log. For any number of threads."""

    _log = Logger(namespace="pelotontx.wsgi")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self._log.error("{line}", line=line)
        return len(text)

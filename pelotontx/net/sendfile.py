"""Parts of files as bodies: from the page cache to the socket, or in pieces where that cannot be.

    FileSlice.of("/srv/films/1.mp4")            a whole file
    FileSlice(OpenFile.open(path), 100, 50)     bytes 100 to 149 of it

A transport of `net.tcp` sends a slice by `os.sendfile` (`Corked.send_file`). Everywhere else, under
TLS and in HTTP/2, a slice is read: it is an async iterator of bytes.

The reactor does not wait for a disk that it can see coming: before it sends or reads, it looks
whether the next bytes are in the page cache, and if not a thread reads them first. Some file
systems (over a network, in layers) cannot tell; from these it reads as if all were there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

from pelotontx.errors import LocalProtocolError, TruncatedFile
from pelotontx.net.threads import SharedThreads

#: One piece of a slice that is read: enough to keep TLS busy, little enough to keep for each peer.
PIECE_BYTES = 128 * 1024

#: What is looked at in the page cache, and read ahead by a thread, at a time. Files are read from
#: one end to the other, so that a few bytes tell of the rest.
WARM_BYTES = 1024 * 1024

#: Read what is not in memory. A disk serves a few at a time; a network file system that hangs holds
#: these, and whoever waits for a file, but nothing else.
READERS = SharedThreads("files", 8, waiting=1024)

_ignored = bytearray(1)


class OpenFile:
    """A regular file, open for reading; closed when nobody refers to it any more.

    A cache and any number of answers share one.

    Attributes:
        descriptor: of the open file.
        status: what `os.fstat` said when it was opened.
    """

    __slots__ = ("descriptor", "status")

    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self.descriptor = descriptor
        self.status = status

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> OpenFile:
        """Opens a file.

        Raises:
            OSError: it cannot be opened, or is not a regular file (EISDIR for a directory).
            ValueError: not a path at all.
        """
        # Without O_NONBLOCK a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        file = cls(descriptor, status)
        if not stat.S_ISREG(status.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(code, os.strerror(code), os.fspath(path))
        return file

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.status.st_size

    def read_cached(self, count: int, offset: int) -> bytes | None:
        """Bytes that are in memory already; fewer at the end of the file.

        Returns:
            None if the disk would have to be waited for.
        """
        buffer = bytearray(count)
        try:
            read = os.preadv(self.descriptor, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return os.pread(self.descriptor, count, offset)  # a file system that cannot tell
        if read < count and offset + read < self.size:
            return None  # the rest is not there
        return bytes(memoryview(buffer)[:read])

    def is_cached(self, count: int, offset: int) -> bool:
        """Whether bytes seem to be in memory: their middle and their end are looked at."""
        for spot in (offset + count // 2, offset + count - 1):
            try:
                if not os.preadv(self.descriptor, [_ignored], spot, os.RWF_NOWAIT):
                    return False
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        return True

    def read(self, count: int, offset: int) -> bytes:
        """Bytes, wherever they are: for threads."""
        return os.pread(self.descriptor, count, offset)


class FileSlice:
    """Some bytes of an open file, to be sent once; a `net.http.Response.body`.

    Who sends it takes it to its end or closes it; it lets go of the file by then.

    Args:
        file: what it is a part of.
        offset: where it begins.
        length: its bytes; None: to the end of the file.

    Attributes:
        offset: of the next byte.
        left: bytes to go.
        length: bytes in all.
    """

    __slots__ = ("_warm_to", "file", "left", "length", "offset")

    def __init__(self, file: OpenFile, offset: int = 0, length: int | None = None) -> None:
        self.file: OpenFile | None = file
        self.offset = offset
        self.length = self.left = max(0, file.size - offset) if length is None else length
        self._warm_to = offset

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileSlice:
        """A whole file; raises as `OpenFile.open`."""
        return cls(OpenFile.open(path))

    def close(self) -> None:
        """Lets go of the file; nothing more can be sent."""
        self.file = None

    async def aclose(self) -> None:
        """`close`, as for other async iterators."""
        self.close()

    def send(self, socket_descriptor: int, limit_bytes: int) -> int:
        """Sends bytes to a socket that does not block; returns how many.

        Raises:
            TruncatedFile: there are fewer than announced.
            OSError: of `os.sendfile`; `BlockingIOError` when the socket is full.
        """
        assert self.file is not None
        count = min(self.left, limit_bytes)
        sent = os.sendfile(socket_descriptor, self.file.descriptor, self.offset, count)
        self._advance(sent)
        return sent

    def _advance(self, count: int) -> None:
        if not count:
            raise TruncatedFile("a file became shorter while it was sent")
        self.offset += count
        self.left -= count
        if not self.left:
            self.close()

    def is_warm(self) -> bool:
        """Whether the next bytes are in memory, as far as a few looks can tell."""
        if self.offset < self._warm_to or self.file is None:
            return True
        count = min(self.left, WARM_BYTES)
        if not self.file.is_cached(count, self.offset):
            return False
        self._warm_to = self.offset + count
        return True

    def warm(self) -> None:
        """Has the next bytes read into memory: for a thread. Errors are left to who sends."""
        file, offset, count = self.file, self.offset, min(self.left, WARM_BYTES)
        if file is None:
            return
        end = offset + count
        with suppress(OSError):
            for spot in range(offset, end, PIECE_BYTES):
                file.read(min(PIECE_BYTES, end - spot), spot)
        self._warm_to = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes in pieces of `PIECE_BYTES` at most; cancelling closes the slice.

        Raises:
            TruncatedFile: there are fewer than announced.
            RefusedRequest: 503, too many wait for the disk.
            OSError: the disk failed.
        """
        try:
            while self.left:
                if self.file is None:
                    raise LocalProtocolError("the slice was closed")
                count = min(self.left, PIECE_BYTES)
                piece = self.file.read_cached(count, self.offset)
                if piece is None:
                    piece = await READERS.run(partial(self.file.read, count, self.offset))
                self._advance(len(piece))
                yield piece
        finally:
            self.close()

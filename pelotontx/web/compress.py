"""gzip for what handlers make: text that the client takes compressed.

    app.after(Compress())

Files are not its business: they lie compressed beside themselves (`web.files`). A page that shows
a secret next to something that the client sent should not be compressed: the length tells whether
they are alike (BREACH); ``Cache-Control: no-transform`` on its response says so.

The reactor is not held up: a body that is longer than `INLINE_BYTES` is compressed in a thread,
slice by slice, as the client reads it, and so are long pieces of streams. A stream's piece leaves
as soon as it is there, which costs some compression.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

from pelotontx.net.http import BodyWriter, Response
from pelotontx.net.sendfile import FileSlice
from pelotontx.net.threads import SharedThreads
from pelotontx.web.request import Request
from pelotontx.wire.negotiation import choose_coding

#: Below this an answer is one packet anyway.
MIN_BYTES = 1024

#: What is compressed at once: a millisecond or two. Also the slices of what is longer.
INLINE_BYTES = 64 * 1024

# Of each answer one slice waits at most.
_packers: Final = SharedThreads("compress", 2)

#: Answers that have no body, or a part of one.
_UNTOUCHED = frozenset({204, 205, 206, 304})

#: Not event streams: each holds 256 KiB for as long as it is open, and its events are small.
_COMPRESSIBLE = re.compile(
    r"text/(?!event-stream)|(?:application/(?:json|javascript|xml|wasm|x-ndjson|yaml|toml)"
    r"|[^;]*\+(?:json|xml|text))(?:$|[; ])",
    re.I,
)

_STRONG_ETAG = re.compile(rb'(?im)^(etag: *)(?=")')


class Compress:
    """A hook for `App.after`.

    Args:
        min_bytes: shorter bodies stay as they are.
        inline_bytes: longer ones are compressed in a thread.
        level: 1 to 9, as zlib's.
    """

    def __init__(
        self, *, min_bytes: int = MIN_BYTES, inline_bytes: int = INLINE_BYTES, level: int = 5
    ) -> None:
        self._min_bytes = min_bytes
        self._inline_bytes = inline_bytes
        self._level = level

    def __call__(self, request: Request, response: Response) -> Response | None:
        """The response to send instead; None to send it as it is."""
        body = response.body
        if isinstance(body, bytes):
            if len(body) < self._min_bytes:
                return None
        elif isinstance(body, FileSlice) or (response.length or self._min_bytes) < self._min_bytes:
            return None
        if not _may_change(response):
            return None
        changed = copy.copy(response)
        vary = ", ".join(response.headers.get_all("vary"))
        if "accept-encoding" not in vary.lower() and "*" not in vary:
            changed.add_header("Vary", "Accept-Encoding")
        accept = ", ".join(request.headers.get_all("accept-encoding"))
        if not choose_coding(accept, ("gzip",)):
            return changed
        changed.fields = _STRONG_ETAG.sub(rb"\1W/", changed.fields)
        changed.add_header("Content-Encoding", "gzip")
        changed.length = None
        if isinstance(body, bytes) or request.method != "HEAD":
            changed.body = self._compressed(body)
        return changed

    def _compressed(self, body: Any) -> Any:
        packer = zlib.compressobj(self._level, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        if isinstance(body, bytes):
            if len(body) <= self._inline_bytes:
                return packer.compress(body) + packer.flush()
            return _whole(body, packer, self._inline_bytes)
        if callable(body):
            return _written(body, packer)
        return _pieces(body, packer, self._inline_bytes)


def _may_change(response: Response) -> bool:
    if response.status in _UNTOUCHED:
        return False
    headers = response.headers
    if "content-encoding" in headers or "content-range" in headers or "accept-ranges" in headers:
        return False
    if "no-transform" in ", ".join(headers.get_all("cache-control")).lower():
        return False
    return _COMPRESSIBLE.match(headers.get("content-type")) is not None


async def _whole(body: bytes, packer: Any, slice_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), slice_bytes):
        piece = await _packers.run(partial(packer.compress, body[start : start + slice_bytes]))
        if piece:
            yield piece
    yield packer.flush()


async def _pieces(
    body: AsyncIterable[bytes], packer: Any, inline_bytes: int
) -> AsyncIterator[bytes]:
    def packed(piece: bytes) -> bytes:
        return cast(bytes, packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH))

    try:
        async for piece in body:
            if len(piece) > inline_bytes:
                yield await _packers.run(partial(packed, piece))
            elif piece:
                yield packed(piece)
        yield packer.flush()
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()


def _written(
    body: Callable[[Any], Awaitable[object]], packer: Any
) -> Callable[[BodyWriter], Awaitable[object]]:
    async def write(writer: BodyWriter) -> None:
        await body(_Writer(writer, packer))
        await writer.write(packer.flush())

    return write


class _Writer:
    """A `BodyWriter` that compresses: what it has not of its own is the other's."""

    def __init__(self, writer: BodyWriter, packer: Any) -> None:
        self._writer = writer
        self._packer = packer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes) -> Awaitable[None]:
        """As `BodyWriter.write`; compresses at once, so that pieces should not be long."""
        if data:
            data = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        return self._writer.write(data)

"""How a request for a file is answered: not at all, whole, or in parts. RFC 9110, 13 to 15.

For `web.files` only, which says what the file is and what fields go with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex

from pelotontx.net.http import Response
from pelotontx.net.sendfile import FileSlice
from pelotontx.web.errors import HTTPError
from pelotontx.web.file_cache import Representation
from pelotontx.web.request import Request
from pelotontx.wire.conditional import (
    ByteRange,
    check_preconditions,
    content_range,
    format_date,
    wanted_ranges,
)
from pelotontx.wire.http import response_field


def head_of(representation: Representation, further: bytes = b"") -> bytes:
    """The header lines of a file, and further ones."""
    etag, modified_s = representation.validators
    lines = response_field("Content-Type", representation.content_type)
    if representation.coding:
        lines += response_field("Content-Encoding", representation.coding)
    lines += response_field("Accept-Ranges", "bytes") + response_field("ETag", etag)
    if modified_s is not None:
        lines += response_field("Last-Modified", format_date(modified_s))
    return lines + further


def answer(request: Request, found: Representation, head: bytes, *, now_s: float) -> Response:
    """The response to a GET or HEAD; any other method has the file whole.

    Args:
        request: whose conditions and ranges count.
        found: what is sent.
        head: of `head_of`.
        now_s: seconds since the epoch.

    Raises:
        HTTPError: 412 or 416.
    """
    fields = request.headers
    verdict = check_preconditions(request.method, fields, found.validators)
    if verdict == 304:
        return _response(304, b"", _without_content(head))
    if verdict == 412:
        raise HTTPError(412, "The file is another one by now.")
    if request.method == "HEAD":
        return _response(200, b"", head, found.size)
    ranges = None
    if request.method == "GET":
        ranges = wanted_ranges(fields, found.validators, found.size, now_s=now_s)
    if ranges is None:
        return _response(200, found.part(0, found.size), head, found.size)
    if not ranges:
        headers = {"Accept-Ranges": "bytes", "Content-Range": content_range(None, found.size)}
        raise HTTPError(416, "The file has no such part.", headers)
    if len(ranges) > 1:
        return _multipart(found, ranges, head)
    part = ranges[0]
    head += response_field("Content-Range", content_range(part, found.size))
    return _response(206, found.part(part.first, part.length), head, part.length)


def _response(
    status: int, body: bytes | FileSlice | AsyncIterator[bytes], head: bytes, length: int = 0
) -> Response:
    response = Response(status, body, length=length)
    response.fields = head
    return response


def _without_content(head: bytes) -> bytes:
    """What is said of the answer, without what is said of its content."""
    lines = head.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith((b"Content-", b"Accept-")))


def _multipart(found: Representation, ranges: list[ByteRange], head: bytes) -> Response:
    """Several parts, each under its own head (RFC 9110, 14.6)."""
    boundary = token_hex(12)
    kind = response_field("Content-Type", found.content_type)
    heads = []
    for part in ranges:
        where = response_field("Content-Range", content_range(part, found.size))
        heads.append(b"\r\n--%b\r\n%b%b\r\n" % (boundary.encode(), kind, where))
    end = b"\r\n--%b--\r\n" % boundary.encode()
    length = sum(part.length for part in ranges) + sum(map(len, heads)) + len(end)
    head = head.replace(kind, b"", 1)
    head += response_field("Content-Type", f"multipart/byteranges; boundary={boundary}")
    return _response(206, _parts(found, ranges, heads, end), head, length)


async def _parts(
    found: Representation, ranges: list[ByteRange], heads: list[bytes], end: bytes
) -> AsyncIterator[bytes]:
    for part, head in zip(ranges, heads, strict=True):
        yield head
        body = found.part(part.first, part.length)
        if isinstance(body, bytes):
            yield body
        else:
            async for piece in body:
                yield piece
    yield end

"""What is compressed, and what is left alone; no connection."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import Response
from pelotontx.net.sendfile import FileSlice, OpenFile
from pelotontx.web.compress import Compress
from pelotontx.web.responses import html, json, text
from tests.support.app_case import request

PAGE = "<p>all the same</p>" * 200


class Writer:
    """Stands for a `BodyWriter`: keeps what is written."""

    is_finished = False

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> Deferred[None]:
        self.pieces.append(data)
        written: Deferred[None] = Deferred()
        written.callback(None)
        return written


class CompressTests(SynchronousTestCase):
    def apply(
        self,
        response: Response,
        *,
        accept: str = "gzip",
        method: str = "GET",
        compress: Compress | None = None,
    ) -> Response:
        headers = {"Accept-Encoding": accept} if accept else None
        return (compress or Compress())(request(method, "/", headers), response) or response

    def pieces(self, response: Response) -> list[bytes]:
        async def read() -> list[bytes]:
            return [piece async for piece in response.body]  # type: ignore[union-attr]

        return self.successResultOf(Deferred.fromCoroutine(read()))

    def assertUntouched(self, response: Response, **options: Any) -> None:
        fields, body = response.fields, response.body
        after = self.apply(response, **options)
        self.assertEqual((after.fields, after.body), (fields, body))

    def test_text_is_compressed(self) -> None:
        for response in (html(PAGE), text(PAGE), json([PAGE])):
            plain = response.body
            after = self.apply(response)
            self.assertEqual(gzip.decompress(after.body), plain)  # type: ignore[arg-type]
            self.assertEqual(after.headers["content-encoding"], "gzip")
            self.assertEqual(after.headers["vary"], "Accept-Encoding")
            self.assertEqual(after.headers["content-type"], response.headers["content-type"])

    def test_same_text_gives_the_same_bytes(self) -> None:
        self.assertEqual(self.apply(html(PAGE)).body, self.apply(html(PAGE)).body)

    def test_handlers_response_is_left_as_it_was(self) -> None:
        shared = html(PAGE)
        fields = shared.fields
        for _ in range(2):
            self.assertEqual(self.apply(shared).headers["content-encoding"], "gzip")
        self.assertEqual((shared.fields, shared.body), (fields, PAGE.encode()))

    def test_clients_that_do_not_take_it_are_told_apart(self) -> None:
        for accept in ("", "br", "gzip;q=0", "identity"):
            after = self.apply(html(PAGE), accept=accept)
            self.assertEqual(after.body, PAGE.encode())
            self.assertEqual(after.headers["vary"], "Accept-Encoding")
            self.assertNotIn("content-encoding", after.headers)

    def test_vary_is_not_said_twice(self) -> None:
        for value, expected in (
            ("Cookie", ["Cookie", "Accept-Encoding"]),
            ("accept-encoding, Cookie", ["accept-encoding, Cookie"]),
            ("*", ["*"]),
        ):
            after = self.apply(html(PAGE, headers={"Vary": value}))
            self.assertEqual(after.headers.get_all("vary"), expected)

    def test_strong_tag_becomes_weak(self) -> None:
        for tag, expected in (('"a"', 'W/"a"'), ('W/"a"', 'W/"a"')):
            after = self.apply(html(PAGE, headers={"ETag": tag, "X-ETag": '"b"'}))
            self.assertEqual(after.headers["etag"], expected)
            self.assertEqual(after.headers["x-etag"], '"b"')
        after = self.apply(html(PAGE, headers={"ETag": '"a"'}), accept="")
        self.assertEqual(after.headers["etag"], '"a"')

    def test_what_is_left_alone(self) -> None:
        page = PAGE.encode()
        for response in (
            html("short"),
            Response(200, page, content_type="image/png"),
            Response(200, page, content_type="text/event-stream"),
            Response(200, page, content_type="application/octet-stream"),
            Response(200, page),
            html(PAGE, headers={"Content-Encoding": "br"}),
            html(PAGE, headers={"Content-Range": "bytes 0-9/10"}),
            html(PAGE, headers={"Accept-Ranges": "bytes"}),
            html(PAGE, headers={"Cache-Control": "private, No-Transform"}),
            html(PAGE, 206),
            Response(304, b"", content_type="text/html"),
            Response(200, self.letters(), content_type="text/plain", length=5),
            Response(200, FileSlice(OpenFile.open(__file__)), content_type="text/plain"),
        ):
            self.assertUntouched(response)

    def test_types(self) -> None:
        for kind in (
            *("text/css", "application/json", "application/problem+json", "image/svg+xml"),
            *("application/xml", "application/json; charset=utf-8", "TEXT/HTML"),
        ):
            after = self.apply(Response(200, PAGE.encode(), content_type=kind))
            self.assertEqual(after.headers.get("content-encoding"), "gzip", kind)

    def test_errors_are_pages_too(self) -> None:
        self.assertEqual(self.apply(html(PAGE, 404)).headers["content-encoding"], "gzip")

    async def letters(self) -> AsyncIterator[bytes]:
        for letter in b"abc":
            yield bytes([letter]) * 50

    def test_each_piece_of_a_stream_can_be_read_when_it_is_there(self) -> None:
        after = self.apply(Response(200, self.letters(), content_type="text/plain"))
        self.assertIsNone(after.length)
        unpacker = zlib.decompressobj(31)
        pieces = self.pieces(after)
        read = [unpacker.decompress(piece) for piece in pieces]
        self.assertEqual(read, [b"a" * 50, b"b" * 50, b"c" * 50, b""])
        self.assertTrue(unpacker.eof)

    def test_failed_stream_has_no_end(self) -> None:
        closed: list[bool] = []

        async def failing() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                raise ValueError
            finally:
                closed.append(True)

        after = self.apply(Response(200, failing(), content_type="text/plain"))

        async def read() -> None:
            async for _ in after.body:  # type: ignore[union-attr]
                pass

        self.failureResultOf(Deferred.fromCoroutine(read()), ValueError)
        self.assertEqual(closed, [True])

    def test_pieces_that_are_written(self) -> None:
        async def write(writer: Any) -> None:
            await writer.write(b"a" * 50)
            await writer.write(b"")
            assert not writer.is_finished
            await writer.write(b"b" * 50)

        after = self.apply(Response(200, write, content_type="text/plain"))
        writer = Writer()
        body: Any = after.body
        self.successResultOf(Deferred.fromCoroutine(body(writer)))
        unpacker = zlib.decompressobj(31)
        read = [unpacker.decompress(piece) for piece in writer.pieces]
        self.assertEqual(read, [b"a" * 50, b"", b"b" * 50, b""])
        self.assertTrue(unpacker.eof)

    def test_head_of_a_stream_does_not_begin_it(self) -> None:
        letters = self.letters()
        response = Response(200, letters, content_type="text/plain")
        after = self.apply(response, method="HEAD")
        self.assertIs(after.body, letters)
        self.assertEqual(after.headers["content-encoding"], "gzip")
        plain, head = self.apply(html(PAGE)), self.apply(html(PAGE), method="HEAD")
        self.assertEqual(len(plain.body), len(head.body))  # type: ignore[arg-type]

"""Forms from bodies that are fed by hand, into a sink that remembers."""

from __future__ import annotations

import errno
from collections.abc import Awaitable

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http.body import RequestBody
from pelotontx.web.errors import HTTPError
from pelotontx.web.forms import Form, FormLimits, parts, read_form
from pelotontx.web.request import Request
from pelotontx.wire.http import RefusedRequest
from pelotontx.wire.multipart import PartHead
from tests.support.app_case import request

MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
LIMITS = FormLimits(
    body_bytes=4000, fields=3, fields_bytes=200, field_bytes=100, files=2, part_head_bytes=300
)
END = b"--b--\r\n"


def field(name: str, value: bytes) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return head.encode() + value + b"\r\n"


def file(name: str, filename: str, content: bytes) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


class MemoryWriter:
    """Keeps what it is given; waits or fails where it is told to."""

    def __init__(self, sink: MemorySink, head: PartHead) -> None:
        self.sink = sink
        self.head = head
        self.data = b""
        self.is_closed = self.is_discarded = False

    async def write(self, data: bytes) -> None:
        if self.sink.gate is not None:
            await self.sink.gate
        if self.sink.error is not None:
            raise self.sink.error
        self.data += data

    async def close(self) -> str:
        self.is_closed = True
        return f"{self.head.filename}: {self.data.decode()}"

    async def discard(self) -> None:
        self.is_discarded = True
        if self.sink.discard_error is not None:
            raise self.sink.discard_error


class MemorySink:
    def __init__(self) -> None:
        self.writers: list[MemoryWriter] = []
        self.gate: Deferred[None] | None = None
        self.error: Exception | None = None
        self.discard_error: Exception | None = None

    async def open(self, head: PartHead) -> MemoryWriter:
        self.writers.append(MemoryWriter(self, head))
        return self.writers[-1]


class Source:
    """The connection of a body."""

    def __init__(self) -> None:
        self.is_paused = False

    def body_wanted(self) -> None: ...

    def pause_body(self) -> None:
        self.is_paused = True

    def resume_body(self) -> None:
        self.is_paused = False


class FormCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.sink = MemorySink()
        self.source = Source()
        self.seen: list[Form[str]] = []

    def arriving(self, headers: dict[str, str] | None = None) -> tuple[Request, RequestBody]:
        asked = request("POST", "/", MULTIPART if headers is None else headers)
        body = RequestBody(self.source, None, limit_bytes=10)
        asked.expect(body)
        return asked, body

    def reading(self, asked: Request, within: Awaitable[None] | None = None) -> Deferred[None]:
        async def read() -> None:
            async with read_form(asked, self.sink, LIMITS) as form:
                self.seen.append(form)
                if within is not None:
                    await within

        return Deferred.fromCoroutine(read())

    def read(self, data: bytes, headers: dict[str, str] | None = None) -> Form[str]:
        asked, body = self.arriving(headers)
        body.feed(data, is_last=True)
        self.successResultOf(self.reading(asked))
        return self.seen[-1]

    def refused(self, data: bytes, headers: dict[str, str] | None = None) -> int:
        """The status with which it is refused; nothing of it must be left."""
        asked, body = self.arriving(headers)
        body.feed(data, is_last=True)
        error = self.failureResultOf(self.reading(asked), HTTPError, RefusedRequest).value
        self.assertTrue(all(writer.is_discarded for writer in self.sink.writers))
        return int(error.status)


class ReadFormTests(FormCase):
    def test_fields_and_files_are_by_name_and_in_order(self) -> None:
        form = self.read(
            field("a", b"1")
            + file("f", "x", b"one")
            + field("a", "ä".encode())
            + field("", b"")
            + file("f", "y", b"two")
            + END
        )
        self.assertEqual(form.fields, {"a": ["1", "ä"], "": [""]})
        self.assertEqual(form.files, {"f": ["x: one", "y: two"]})
        self.assertEqual((form.field("a"), form.field("b"), form.field("b", "z")), ("ä", "", "z"))
        self.assertEqual(form.file("f"), "y: two")
        with self.assertRaises(HTTPError) as error:
            form.file("g")
        self.assertEqual(error.exception.status, 400)

    def test_a_field_where_no_file_was_chosen_is_not_there(self) -> None:
        form = self.read(file("f", "", b"") + file("g", "empty", b"") + END)
        self.assertEqual(form.files, {"g": ["empty: "]})
        self.assertEqual(self.read(file("f", "", b"x") + END).files, {"f": [": x"]})

    def test_a_plain_form_is_read_as_well(self) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        form = self.read(b"a=1&a=%C3%A4+b&c=", headers)
        self.assertEqual(form.fields, {"a": ["1", "ä b"], "c": [""]})
        self.assertEqual(self.refused(b"a=%FF", headers), 400)
        self.assertEqual(self.refused(b"a=\xff", headers), 400)
        self.assertEqual(self.refused(b"a=1&a=1&a=1&a=1", headers), 413)
        self.assertEqual(self.refused(b"a=" + b"x" * 200, headers), 413)
        self.assertEqual(self.refused(b"a=" + b"x" * 101, headers), 413)
        self.assertEqual(self.read(b"a=" + b"x" * 100, headers).field("a"), "x" * 100)

    def test_another_type_or_two_are_refused(self) -> None:
        self.assertEqual(self.refused(b"{}", {"Content-Type": "application/json"}), 415)
        self.assertEqual(self.refused(b"", {}), 415)
        self.assertEqual(self.refused(END, {**MULTIPART, "content-type": "text/plain"}), 400)

    def test_a_form_that_is_none_is_refused(self) -> None:
        self.assertEqual(self.refused(b""), 400)
        self.assertEqual(self.refused(file("f", "x", b"one")), 400)
        self.assertEqual(self.refused(field("a", b"\xff") + END), 400)

    def test_each_limit_is_413_and_leaves_nothing(self) -> None:
        one = file("f", "x", b"one")
        for data in (
            one + field("a", b"x" * 101) + END,
            one + field("a", b"x" * 90) * 3 + END,
            one + field("a", "ä".encode() * 45) * 3 + END,
            one + field("a", b"") * 4 + END,
            one * 3 + END,
            one + file("f", "x" * 300, b"") + END,
            one + file("f", "x", b"x" * 4000) + END,
        ):
            self.assertEqual(self.refused(data), 413)
            self.assertTrue(self.sink.writers)

    def test_what_just_fits_is_taken(self) -> None:
        one = file("f", "x", b"x" * 1000)
        form = self.read(one * 2 + field("a", b"x" * 64) * 3 + END)
        self.assertEqual((len(form.fields["a"]), len(form.files["f"])), (3, 2))

    def test_files_are_discarded_at_the_end_and_not_before(self) -> None:
        asked, body = self.arriving()
        gate: Deferred[None] = Deferred()
        reading = self.reading(asked, gate)
        body.feed(file("f", "x", b"one") + END, is_last=True)
        (writer,) = self.sink.writers
        self.assertEqual((writer.is_closed, writer.is_discarded), (True, False))
        gate.callback(None)
        self.successResultOf(reading)
        self.assertTrue(writer.is_discarded)

    def test_an_error_of_the_handler_or_its_cancellation_leaves_nothing(self) -> None:
        for end in (lambda gate: gate.errback(ZeroDivisionError()), Deferred.cancel):
            asked, body = self.arriving()
            gate: Deferred[None] = Deferred()
            reading = self.reading(asked, gate)
            body.feed(file("f", "x", b"one") + END, is_last=True)
            end(gate)
            self.failureResultOf(reading, ZeroDivisionError, CancelledError)
            self.assertTrue(self.sink.writers.pop().is_discarded)

    def test_a_cancellation_while_it_arrives_leaves_nothing(self) -> None:
        asked, body = self.arriving()
        reading = self.reading(asked)
        body.feed(file("f", "x", b"one") + file("f", "y", b"tw"))
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        self.assertEqual([writer.is_discarded for writer in self.sink.writers], [True, True])

    def test_a_body_that_fails_leaves_nothing(self) -> None:
        asked, body = self.arriving()
        reading = self.reading(asked)
        body.feed(file("f", "x", b"one")[:-3])
        body.fail(RefusedRequest(408, "too slow"))
        self.failureResultOf(reading, RefusedRequest)
        self.assertTrue(self.sink.writers[0].is_discarded)

    def test_one_that_cannot_be_discarded_is_logged_and_the_rest_goes(self) -> None:
        self.sink.discard_error = PermissionError()
        self.read(file("f", "x", b"one") * 2 + END)
        self.assertEqual([writer.is_discarded for writer in self.sink.writers], [True, True])
        self.assertEqual(len(self.flushLoggedErrors(PermissionError)), 2)

    def test_a_full_disk_is_507_and_another_error_the_servers(self) -> None:
        self.sink.error = OSError(errno.ENOSPC, "full")
        self.assertEqual(self.refused(file("f", "x", b"one") + END), 507)
        self.sink.error = OSError(errno.EIO, "broken")
        asked, body = self.arriving()
        body.feed(file("f", "x", b"one") + END, is_last=True)
        self.failureResultOf(self.reading(asked), OSError)

    def test_the_client_waits_for_the_sink(self) -> None:
        asked, body = self.arriving()
        self.sink.gate = gate = Deferred()

        async def read() -> str:
            async with read_form(asked, self.sink) as form:
                return form.file("f")

        reading = Deferred.fromCoroutine(read())
        body.feed(file("f", "x", b"one")[:-2])
        for _ in range(3):
            body.feed(b"z" * 50_000)
        self.assertEqual((self.sink.writers[0].data, self.source.is_paused), (b"", True))
        gate.callback(None)
        self.assertFalse(self.source.is_paused)
        body.feed(b"\r\n" + END, is_last=True)
        self.assertEqual(self.successResultOf(reading), "x: one" + "z" * 150_000)

    def test_a_body_that_was_collected_is_read_as_well(self) -> None:
        asked = request("POST", "/", MULTIPART, field("a", b"1") + file("f", "x", b"one") + END)
        for _ in range(2):
            self.successResultOf(self.reading(asked))
            self.assertEqual(self.seen[-1].fields, {"a": ["1"]})
        asked = request("POST", "/", MULTIPART, b"x" * 5000)
        error = self.failureResultOf(self.reading(asked), RefusedRequest).value
        self.assertEqual(error.status, 413)

    def test_a_server_without_uploads_says_so(self) -> None:
        asked, _ = self.arriving()
        self.assertRaises(LocalProtocolError, asked.read_form)


class PartsTests(FormCase):
    def collect(self, data: bytes, skip: frozenset[str] = frozenset()) -> list[tuple[str, bytes]]:
        asked, body = self.arriving()
        body.feed(data, is_last=True)

        async def collect() -> list[tuple[str, bytes]]:
            found = []
            async for part in parts(asked, LIMITS):
                if part.name not in skip:
                    found.append((part.name, b"".join([piece async for piece in part])))
            return found

        return self.successResultOf(Deferred.fromCoroutine(collect()))

    def test_parts_come_one_after_another(self) -> None:
        data = field("a", b"1") + file("b", "x", b"z" * 500) + END
        self.assertEqual(self.collect(data), [("a", b"1"), ("b", b"z" * 500)])

    def test_what_is_left_of_a_part_is_skipped(self) -> None:
        data = field("a", b"1") + file("b", "x", b"z" * 500) + field("c", b"3") + END
        found = self.collect(data, skip=frozenset({"a", "b"}))
        self.assertEqual(found, [("c", b"3")])

    def test_pieces_come_while_the_part_arrives(self) -> None:
        asked, body = self.arriving()
        pieces: list[bytes] = []

        async def collect() -> None:
            async for part in asked.parts():
                self.assertEqual((part.filename, part.content_type), ("x", "text/plain"))
                async for piece in part:
                    pieces.append(piece)

        reading = Deferred.fromCoroutine(collect())
        body.feed(file("b", "x", b"one")[:-2])
        self.assertEqual(pieces, [b"one"])
        body.feed(b"two\r")
        self.assertEqual(pieces, [b"one", b"two"])
        body.feed(b"\n" + END, is_last=True)
        self.successResultOf(reading)

    def test_reading_a_part_is_bounded(self) -> None:
        asked, body = self.arriving()
        body.feed(file("b", "x", b"z" * 500) + END, is_last=True)

        async def read(limit_bytes: int | None) -> bytes:
            part = await anext(parts(asked, LIMITS))
            return await part.read(limit_bytes)

        error = self.failureResultOf(Deferred.fromCoroutine(read(None)), HTTPError).value
        self.assertEqual(error.status, 413)
        asked, body = self.arriving()
        body.feed(file("b", "x", b"z" * 500) + END, is_last=True)
        self.assertEqual(len(self.successResultOf(Deferred.fromCoroutine(read(500)))), 500)

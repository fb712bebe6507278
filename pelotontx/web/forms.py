r"""Forms with files: multipart/form-data, read while it arrives.

    @app.post(r"^/photos$", stream=True)
    async def add_photo(request):
        async with request.read_form() as form:
            photo = form.file("photo")
            await photo.store(FOLDER / token_hex(16))
        return text("kept\n", 201)

`read_form` gives the whole form, with its files in a sink (`web.uploads`: on the disk); what the
handler does not keep is removed at the end of the ``async with``, however it ends. `parts` gives
one part after another to those who work on them as they come: the client waits for them.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from pelotontx.net.http import Request
from pelotontx.net.http.body import RequestBody
from pelotontx.web.errors import HTTPError
from pelotontx.web.uploads import Sink, Writer
from pelotontx.wire.http import RefusedRequest
from pelotontx.wire.multipart import FORM_TYPE, MultipartParser, PartHead, read_boundary

F = TypeVar("F")

URLENCODED: Final = "application/x-www-form-urlencoded"

_log = Logger()

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class FormLimits:
    """What a form may hold; past it the answer is 413.

    Attributes:
        body_bytes: all of it: files lie on the disk meanwhile.
        fields: parts that are no files; each is an object.
        fields_bytes: all of them together, names included: they lie in memory.
        field_bytes: one field.
        files: parts that are files; each may be a file on the disk.
        part_head_bytes: the headers of a part, which lie in memory.
    """

    body_bytes: int = 64 * 1024 * 1024
    fields: int = 1000
    fields_bytes: int = 1024 * 1024
    field_bytes: int = 64 * 1024
    files: int = 100
    part_head_bytes: int = 8 * 1024


class Part:
    """One part of a form while it arrives: ``async for piece in part``.

    What is left of it when the next part is asked for is skipped.

    Attributes:
        head: its name, and what else is known of it.
    """

    def __init__(self, events: _Events, head: PartHead, limit_bytes: int) -> None:
        self._events = events
        self._limit_bytes = limit_bytes
        self._has_ended = False
        self.head = head

    @property
    def name(self) -> str:
        """The field's name; may be empty or come again."""
        return self.head.name

    @property
    def filename(self) -> str | None:
        """As the client has written it; see `wire.multipart.safe_filename`. None: no file."""
        return self.head.filename

    @property
    def content_type(self) -> str:
        """What the client says that it is."""
        return self.head.content_type

    def __aiter__(self) -> Part:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, of any size but 0; raises as `Parts.__anext__`."""
        if self._has_ended:
            raise StopAsyncIteration
        piece = await self._events.next()
        if piece is None:
            self._has_ended = True
            raise StopAsyncIteration
        assert isinstance(piece, bytes)
        return piece

    async def read(self, limit_bytes: int | None = None) -> bytes:
        """What is left of it.

        Args:
            limit_bytes: 413 past it; None: `FormLimits.field_bytes`.
        """
        limit_bytes = self._limit_bytes if limit_bytes is None else limit_bytes
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise HTTPError(413, f"A part is longer than {limit_bytes} bytes.")
        return b"".join(pieces)

    async def text(self) -> str:
        """`read`, as text.

        Raises:
            HTTPError: 400, it is not of its charset.
        """
        data = await self.read()
        try:
            return data.decode(self.head.charset)
        except UnicodeDecodeError:
            raise HTTPError(400, f"A field of the form is not {self.head.charset}.") from None


class Parts:
    """The parts of a form, in order: ``async for part in parts``; see `parts`."""

    def __init__(self, request: Request, limits: FormLimits) -> None:
        self._limits = limits
        self._part: Part | None = None
        self._fields = self._files = 0
        types = request.headers.get_all("content-type")
        if len(types) > 1:
            raise RefusedRequest(400, "more than one Content-Type")
        parser = MultipartParser(
            read_boundary(types[0] if types else ""),
            head_limit_bytes=limits.part_head_bytes,
            parts_limit=limits.fields + limits.files,
        )
        self._events = _Events(_body(request, limits.body_bytes), parser)

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Part:
        """The next part.

        Raises:
            RefusedRequest: 413 past a limit, 400 for what is no form, 408 for a slow client.
            HTTPError: 413 past a limit.
        """
        if self._part is not None:
            async for _ in self._part:
                pass
        head = await self._events.next()
        if head is None:
            raise StopAsyncIteration
        assert isinstance(head, PartHead)
        if head.filename is None:
            self._fields += 1
        else:
            self._files += 1
        if self._fields > self._limits.fields or self._files > self._limits.files:
            raise HTTPError(413, "The form has too many parts.")
        self._part = Part(self._events, head, self._limits.field_bytes)
        return self._part


def _body(request: Request, limit_bytes: int) -> RequestBody:
    """The body as it arrives, or once more if it was collected for a route that does not stream."""
    body = RequestBody.of(request.body) if request.body else request.stream
    body.limit_bytes = limit_bytes
    return body


class _Events:
    """What the parser says of a body, one after the other; None also at the end of all."""

    def __init__(self, body: AsyncIterator[bytes], parser: MultipartParser) -> None:
        self._body = body
        self._parser = parser
        self._events: Iterator[PartHead | bytes | None] = iter(())

    async def next(self) -> PartHead | bytes | None:
        while True:
            for event in self._events:
                return event
            try:
                piece = await anext(self._body)
            except StopAsyncIteration:
                self._parser.end()
                return None
            self._events = self._parser.feed(piece)


def parts(request: Request, limits: FormLimits | None = None) -> Parts:
    """The parts of a form while they arrive.

        async for part in parts(request):
            async for piece in part:
                ...

    Raises:
        RefusedRequest: 415, it is no multipart/form-data; 400, one without a boundary.
    """
    return Parts(request, limits or FormLimits())


@dataclass(slots=True)
class Form(Generic[F]):
    """A form that has arrived.

    Attributes:
        fields: the values of each field, in order.
        files: the files of each field, in order. A field where no file was chosen is not there.
    """

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[F]] = field(default_factory=dict)

    def field(self, name: str, default: str = "") -> str:
        """The last value of a field."""
        values = self.fields.get(name)
        return values[-1] if values else default

    def file(self, name: str) -> F:
        """The last file of a field.

        Raises:
            HTTPError: 400, there is none.
        """
        files = self.files.get(name)
        if not files:
            raise HTTPError(400, f"A file is missing: {name}.")
        return files[-1]


@asynccontextmanager
async def read_form(
    request: Request, sink: Sink[F], limits: FormLimits | None = None
) -> AsyncIterator[Form[F]]:
    """Reads a form, with or without files; files are there until the end of the ``async with``.

    Args:
        request: of a route with ``stream=True``; with another one, ``http.body_limit`` holds too.
        sink: takes the files.
        limits: of everything.

    Raises:
        RefusedRequest: 413 past a limit, 400 for what is no form, 415 for another type, 408 for
            a slow client.
        HTTPError: 413 past a limit, 400 for a field that is no text, 507 when the disk is full.
    """
    limits = limits or FormLimits()
    writers: list[Writer[F]] = []
    try:
        content_type = request.headers.get("content-type").partition(";")[0].strip().lower()
        if content_type == URLENCODED:
            yield await _read_urlencoded(request, limits)
        else:
            yield await _read_multipart(request, sink, limits, writers)
    finally:
        await _discard(writers)


async def _discard(writers: list[Writer[F]]) -> None:
    """All of them, even if one fails; cancelled, it has begun with all."""
    ended = DeferredList(
        [Deferred.fromCoroutine(writer.discard()) for writer in writers], consumeErrors=True
    )
    for has_succeeded, result in await ended:
        if not has_succeeded:
            _log.failure("An upload could not be removed", result)


async def _read_urlencoded(request: Request, limits: FormLimits) -> Form[F]:
    body = await _body(request, limits.fields_bytes).read()
    form: Form[F] = Form()
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=limits.fields,
        )
    except UnicodeDecodeError:
        raise HTTPError(400, "A field of the form is not utf-8.") from None
    except ValueError:
        raise HTTPError(413, "The form has too many parts.") from None
    for name, value in pairs:
        if len(value.encode()) > limits.field_bytes:
            raise HTTPError(413, f"A field is longer than {limits.field_bytes} bytes.")
        form.fields.setdefault(name, []).append(value)
    return form


async def _read_multipart(
    request: Request, sink: Sink[F], limits: FormLimits, writers: list[Writer[F]]
) -> Form[F]:
    form: Form[F] = Form()
    room = limits.fields_bytes
    try:
        async for part in parts(request, limits):
            if part.filename is None:
                value = await part.text()
                room -= len(part.name.encode()) + len(value.encode())
                if room < 0:
                    raise HTTPError(413, "The fields of the form are too long.")
                form.fields.setdefault(part.name, []).append(value)
            else:
                file = await _keep(part, sink, writers)
                if file is not None:
                    form.files.setdefault(part.name, []).append(file)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise HTTPError(507, "There is no room for this upload.") from error
        raise
    return form


async def _keep(part: Part, sink: Sink[F], writers: list[Writer[F]]) -> F | None:
    """Writes a file to the sink; None if its sender has chosen none."""
    piece = await anext(part, b"")
    if not piece and not part.filename:
        return None
    writer = await sink.open(part.head)
    writers.append(writer)
    if piece:
        await writer.write(piece)
    async for piece in part:
        await writer.write(piece)
    return await writer.close()


__all__ = ["FORM_TYPE", "URLENCODED", "Form", "FormLimits", "Part", "Parts", "parts", "read_form"]

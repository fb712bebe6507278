"""Nothing of a request waits for the garbage collector, whose collections are rare in a server."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from typing import Any, ClassVar
from weakref import ref

from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from pelotontx.net.http import BodyWriter, Response
from pelotontx.net.sendfile import FileSlice
from pelotontx.web import Request
from pelotontx.web.forms import read_form
from pelotontx.web.mount import WSGI, TwistedWeb
from tests.support.mount_case import MountCase
from tests.unit.backend.callee_case import ThreadedClock
from tests.unit.web.test_forms import MemorySink
from tests.unit.web.test_mount_asgi import START, ASGICase, Receive, Send, body

PAGE = b"x" * 300_000
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n%b\r\n--b--\r\n' % PAGE
)
FORM_FIELD = b"Content-Type: multipart/form-data; boundary=b\r\n"


# Of a cancelled handler something keeps the frames when pytest runs trial's tests: what is about
# clients that leave is checked by trial alone.
UNDER_TRIAL = "PYTEST_VERSION" not in os.environ


class Watched(Request):
    """Tells which of them are alive."""

    __slots__ = ("__weakref__",)

    made: ClassVar[list[ref[Request]]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made.append(ref(self))

    @classmethod
    def alive(cls) -> list[Request]:
        return [request for watched in cls.made if (request := watched()) is not None]


class GarbageCase(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.factory.request_class = Watched
        gc.disable()
        self.addCleanup(gc.enable)

    def settle(self) -> None:
        """Has everything come to its end."""
        self.clock.advance(0)

    def visit(self, data: bytes) -> None:
        """Says something and leaves."""
        connection, wire = self.connect()
        connection.dataReceived(data)
        self.settle()
        connection.connectionLost()
        wire.protocol = None  # as transports do

    def check(self, path: str, data: bytes = PAGE, fields: bytes = b"") -> None:
        """One whose client leaves behind its body, and one whose client leaves amid it."""
        Watched.made.clear()
        head = HEAD % (path.encode(), len(data), fields)
        visits = (data, data[: len(data) // 2]) if UNDER_TRIAL else (data,)
        for sent in visits:
            self.visit(head + sent)
            self.settle()
        self.assertEqual(len(Watched.made), len(visits))
        self.assertEqual(Watched.alive(), [], path)


class HandlerTests(GarbageCase):
    async def read(self, request: Request) -> bytes:
        return await request.stream.read()

    async def pieces(self, request: Request) -> AsyncIterator[bytes]:
        async for piece in request.stream:
            yield piece

    def test_bodies_that_are_gathered_and_bodies_that_are_streams(self) -> None:
        async def never_ends(request: Request) -> Response:
            async def write(writer: BodyWriter) -> None:
                await writer.write(request.body)
                await Deferred()

            return Response(200, write)

        self.app.post(r"^/gathered$")(lambda request: Response(200, request.body))
        self.app.post(r"^/read$", stream=True)(self.read)
        self.app.post(r"^/echo$", stream=True)(lambda r: Response(200, self.pieces(r)))
        self.app.post(r"^/waits$")(lambda request: Deferred())
        self.app.post(r"^/never_ends$")(never_ends)
        self.app.post(r"^/file$")(lambda request: Response(200, FileSlice.of(__file__)))
        for path in ("/gathered", "/read", "/echo", "/file"):
            self.check(path)
        if UNDER_TRIAL:
            self.check("/waits")
            self.check("/never_ends")

    def test_bodies_that_are_refused(self) -> None:
        self.app.post(r"^/$", stream=True)(self.read)
        self.check("/", b"x" * (3 * self.limits.body_limit_bytes))

    def test_forms(self) -> None:
        @self.app.post(r"^/$", stream=True)
        async def receive(request: Request) -> str:
            async with read_form(request, MemorySink()) as form:
                return "".join(form.files)

        self.check("/", FORM, FORM_FIELD)


class TwistedWebTests(GarbageCase):
    def test_what_resources_answer_and_what_they_do_not(self) -> None:
        class Echo(Resource):
            isLeaf = True

            def render_POST(self, request: Any) -> Any:
                return request.content.read()

        class Pieces(Echo):
            def render_POST(self, request: Any) -> Any:
                for _ in range(3):
                    request.write(b"piece")
                request.finish()
                return NOT_DONE_YET

        class Never(Echo):
            def render_POST(self, request: Any) -> Any:
                return NOT_DONE_YET

        for resource in (Echo(), Pieces(), Never()) if UNDER_TRIAL else (Echo(), Pieces()):
            path = f"/{type(resource).__name__}"
            self.mount(path, TwistedWeb(resource))
            self.check(path)


class WSGITests(GarbageCase):
    skip = None if UNDER_TRIAL else "its clients leave before they are answered"

    def setUp(self) -> None:
        self.threads = ThreadedClock()
        super().setUp()

    @property
    def reactor(self) -> Any:
        return self.threads

    def settle(self) -> None:
        if not self.factory.connections:
            self.threads.until(lambda: not Watched.alive())

    def test_what_applications_return_write_and_raise(self) -> None:
        def echo(environ: Any, start: Any) -> list[bytes]:
            start("200 OK", [])
            return [environ["wsgi.input"].read()]

        def pieces(environ: Any, start: Any) -> Any:
            start("200 OK", [])
            for _ in range(3):
                yield environ["wsgi.input"].read(100_000)

        def writes(environ: Any, start: Any) -> list[bytes]:
            write = start("200 OK", [])
            write(environ["wsgi.input"].read())
            return []

        for application in (echo, pieces, writes):
            path = f"/{application.__name__}"
            self.mount(path, WSGI(application))
            self.check(path)


class ASGITests(ASGICase, GarbageCase):
    def setUp(self) -> None:
        GarbageCase.setUp(self)
        ASGICase.setUp(self)
        self.factory.request_class = Watched

    def settle(self) -> None:
        self.turn()

    def test_what_applications_send_and_wait_for(self) -> None:
        async def gathered(receive: Receive) -> bytes:
            data = b""
            while True:
                message = await receive()
                data += message.get("body", b"")
                if not message.get("more_body"):
                    return data

        async def application(scope: Any, receive: Receive, send: Send) -> None:
            data = await gathered(receive)
            if scope["path"] == "/api/waits":
                await receive()
            elif scope["path"] == "/api/pieces":
                await send(START)
                await send(body(data, more=True))
                await send(body(data))
            else:
                await send(START)
                await send(body(data))

        self.serve(application)
        for path in ("/api/whole", "/api/pieces", "/api/waits"):
            self.check(path)

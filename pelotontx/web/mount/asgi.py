"""ASGI applications under a path of ours: Starlette, FastAPI, Django, anything that is one.

    app.mount("/api", ASGI(application))

They are coroutines of asyncio, so the server must run on the asyncio reactor: ``twistd
--reactor=asyncio peloton ...``. HTTP, WebSocket and lifespan are spoken, by the specification's
version 3.0 (https://asgi.readthedocs.io/).

    asgi            the mount, and HTTP
    asgi_websocket  WebSockets
    asgi_lifespan   start and stop
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import ConfigError, LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.net.sendfile import FileSlice
from pelotontx.net.websocket import GOING_AWAY, Refused, ServerFactory
from pelotontx.web.mount.answer import HIGH_BYTES, Answer, checked, response_head
from pelotontx.web.mount.asgi_lifespan import Lifespan
from pelotontx.web.mount.asgi_message import (
    ClientDisconnected,
    Message,
    decoded,
    failure_of,
    misplaced,
)
from pelotontx.web.mount.asgi_websocket import Socket
from pelotontx.web.mount.asked import client_of, origin_form, server_of
from pelotontx.web.mount.host import Host, Mounted
from pelotontx.web.request import Request
from pelotontx.wire.http import RefusedRequest

#: What is left of an application's coroutines when all requests are over ends within this time.
_CANCEL_S: Final = 5.0

Application = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class ASGI(Mounted):
    """An ASGI application.

    An application is not cancelled when its client leaves: `receive` gives ``http.disconnect``, and
    `send` raises `OSError`.

    Args:
        application: the callable, of version 3 (``async def application(scope, receive, send)``).
        body_limit_bytes: the longest body, 413 past it; None: the server's ``http.body_limit``.
        message_limit_bytes: the longest WebSocket message, close code 1009 past it.
        startup_timeout_s: what its start may take; past it the server does not start.
        shutdown_timeout_s: what its end may take; past it it is cancelled.

    Raises:
        TypeError: not a callable.
    """

    _log = Logger()

    def __init__(
        self,
        application: Application,
        *,
        body_limit_bytes: int | None = None,
        message_limit_bytes: int = 1024 * 1024,
        startup_timeout_s: float = 60.0,
        shutdown_timeout_s: float = 10.0,
    ) -> None:
        if not callable(application):
            raise TypeError(f"a {type(application).__name__} is not an ASGI application")
        self.application = application
        self._body_limit_bytes = body_limit_bytes
        self._message_limit_bytes = message_limit_bytes
        self._startup_timeout_s = startup_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._host: Host | None = None
        self._name = ""
        self._state: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._lifespan: Lifespan
        self._websockets: ServerFactory

    def prepare(self, host: Host, name: str) -> None:
        self._loop = event_loop(host.reactor, name)
        self._host = host
        self._name = name
        self._lifespan = Lifespan(self.application, self._loop, self._state)
        self._websockets = ServerFactory(
            host.reactor,
            wheel=host.wheel,
            accept=_nobody,
            limits=replace(host.websocket_limits, message_limit_bytes=self._message_limit_bytes),
            origins=host.origins,
            admission=host.admission,
        )

    async def start(self) -> None:
        """The lifespan's startup.

        Raises:
            ConfigError: it failed, or took too long.
        """
        starting = self._loop.create_task(self._lifespan.start(self._startup_timeout_s))
        reason = await Deferred.fromFuture(starting)
        if reason is not None:
            raise ConfigError(self._name, f"the ASGI application did not start: {reason}")

    def drain(self, timeout_s: float) -> Deferred[None]:
        """Closes the WebSockets with 1001; the close timeout bounds that."""
        closed: Deferred[None] = Deferred()
        self._websockets.close_all(
            GOING_AWAY, "the server is stopping", lambda: closed.callback(None)
        )
        return closed

    async def stop(self) -> None:
        """Cancels what still runs, and the lifespan's shutdown."""
        if self._host is not None:
            await self.drain(0)  # WebSockets that were accepted since
            await Deferred.fromFuture(self._loop.create_task(self._end()))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_S)
        await self._lifespan.stop(self._shutdown_timeout_s)

    def handle(self, request: Request) -> Response | Deferred[Response | Upgrade]:
        """Answers a request that is under the mount's path.

        Raises:
            RefusedRequest: the body is too large, too slow or malformed.
        """
        if self._host is None:
            raise LocalProtocolError("an ASGI was not prepared by a server")
        exchange: _Exchange | Socket
        if b"websocket" in request.framing.upgrade:
            try:
                exchange = Socket(request, self._host, self._websockets, self._loop)
            except Refused as refusal:
                return Response(refusal.status, f"{refusal.reason}\n".encode(), (), "text/plain")
        else:
            if self._body_limit_bytes is not None:
                request.stream.limit_bytes = self._body_limit_bytes
            exchange = _Exchange(request, self._host, self._loop)
        scope = {**scope_of(request), **exchange.scope, "state": self._state.copy()}
        running = self.application(scope, exchange.receive, exchange.send)
        task: asyncio.Task[None] = self._loop.create_task(running)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(exchange.ended)
        task.add_done_callback(self._tasks.discard)
        return exchange.answer.response


def event_loop(reactor: Any, name: str) -> asyncio.AbstractEventLoop:
    """The reactor's event loop.

    Raises:
        ConfigError: it has none.
    """
    if not isinstance(reactor, AsyncioSelectorReactor):
        raise ConfigError(
            name,
            "an ASGI application needs the asyncio reactor: "
            "start the server with twistd --reactor=asyncio peloton ...",
        )
    return reactor._asyncioEventloop


def scope_of(request: Request) -> dict[str, Any]:
    """What a scope says of a request, whatever its type is."""
    target, _, query = origin_form(request).partition(b"?")
    client = client_of(request)
    return {
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.version,
        "path": request.path,
        "raw_path": target,
        "query_string": query,
        "root_path": request.root_path,
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in request.headers.items()
        ],
        "client": client if client[0] else None,
        "server": server_of(request),
    }


def _nobody(_: object) -> Any:
    raise Refused(404, "no application")  # each connection brings its own `accept`


class _Exchange:
    """One HTTP request and its answer: what the application's `receive` and `send` do."""

    _log = Logger()

    def __init__(self, request: Request, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.answer = Answer(
            request,
            wheel=host.wheel,
            on_written=self._written,
            on_gone=self._gone,
            on_over=self._gone,
        )
        self.scope = {
            "type": "http",
            "method": request.method,
            "scheme": request.scheme,
            "extensions": {"http.response.pathsend": {}},
        }
        self._request = request
        self._loop = loop
        self._is_read = False
        self._reading: Deferred[bytes | None] | None = None
        self._head: Response | None = None
        self._is_answered = False
        self._over = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def receive(self) -> Message:
        """The next piece of the body, or that there is nobody or nothing to wait for."""
        if not self._is_read and not self._over.is_set():
            message = await self._receive_body()
            if message is not None:
                return message
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message | None:
        request = self._request
        if request.is_complete and not request.stream.received:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        reading = self._reading = Deferred.fromCoroutine(self._next_piece())
        try:
            piece = await reading.asFuture(self._loop)
        except RefusedRequest as error:
            self.answer.fail(Failure(error.with_traceback(None)))  # which has the body so far
            return None
        if piece is None and self._over.is_set():
            return None
        self._is_read = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def _next_piece(self) -> bytes | None:
        try:
            return await anext(self._request.stream)
        except (StopAsyncIteration, CancelledError):  # cancelled by `_gone`
            return None

    async def send(self, message: Message) -> None:
        """Status and fields, or a piece of the body; waits while much is on its way.

        Raises:
            ClientDisconnected: nobody reads.
            LocalProtocolError: what may not be sent, or not now.
        """
        if self.answer.is_gone:
            raise ClientDisconnected("the client has gone")
        kind = message["type"]
        if kind == "http.response.start" and self._head is None:
            self._head = response_head(message["status"], decoded(message.get("headers", ())))
        elif kind == "http.response.body" and self._head is not None and not self._is_answered:
            body = checked(message.get("body", b""))
            self._send_body(body, is_last=not message.get("more_body", False))
            await self._room.wait()
        elif kind == "http.response.pathsend" and self._head is not None and not self._is_answered:
            self._send_file(message["path"])
        else:
            raise misplaced(message)

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        answer = self.answer
        assert self._head is not None
        answer.is_held = True  # the first may be the last: then it has a length
        if not answer.has_begun:
            answer.begin(self._head)
        answer.write(body)
        if is_last:
            self._is_answered = True
            answer.finish()
            self._over.set()
        answer.release()
        if answer.unwritten > HIGH_BYTES:
            self._room.clear()

    def _send_file(self, path: str) -> None:
        assert self._head is not None
        self._head.body = body = FileSlice.of(path)
        self._head.length = body.length
        self._is_answered = True
        self.answer.replace(self._head)
        self._over.set()

    def _written(self, _: int) -> None:
        if self.answer.unwritten <= HIGH_BYTES // 2:
            self._room.set()

    def _gone(self) -> None:
        """Nobody is there any more, or waits for more: the end of sending, and of receiving."""
        self._room.set()
        self._over.set()
        if self._reading is not None:
            self._reading.cancel()

    def ended(self, task: asyncio.Task[None]) -> None:
        """The application is done."""
        self._over.set()
        error = failure_of(task)
        if not (self._is_answered or self.answer.is_gone):
            unanswered = LocalProtocolError("the application ended without an answer")
            self.answer.fail(Failure(error or unanswered))
        elif error is not None and not isinstance(error, ClientDisconnected):
            self._log.warn(
                "{method} {path} failed when it was answered or its client had gone: {error!r}",
                method=self._request.method,
                path=self._request.path,
                error=error,
            )

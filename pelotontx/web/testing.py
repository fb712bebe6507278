"""A client for the tests of an app: no server, no connection, no reactor.

    client = Client(app)
    response = client.get("/hello/ann")
    assert (response.status, response.text) == (200, "Hello, ann")

A handler that waits for something has its answer later: ``await client.aget("/slow")``, or a
Deferred that the test makes fire. Cookies are kept, sessions and files of forms in memory, and
streamed answers are collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partialmethod
from secrets import token_hex
from typing import Any, cast
from urllib.parse import urlencode

import msgspec
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import BodyWriter, Headers, Response
from pelotontx.web.in_memory import request_class as in_memory
from pelotontx.web.request import FORM_TYPE, Request
from pelotontx.web.tree import Mountable
from pelotontx.wire.http import HeadLimits, read_head, read_target

#: Answers without a body.
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        status: whatever it is: an error's status is no exception.
        headers: what the app set, Content-Type included; not what a connection adds.
        body: all of it.
    """

    status: int
    headers: Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body in UTF-8."""
        return self.body.decode()

    def json(self, type: Any = Any) -> Any:
        """The body, decoded from JSON; raises `msgspec.DecodeError`, also for another type."""
        return msgspec.json.decode(self.body, type=type)


class Client:
    """Asks an app as a browser does, which keeps its cookies.

    Its methods are ``get``, ``post``, ``put``, ``patch`` and ``delete``, those of `ask` for a
    method; and ``aget`` and so on, those of `begin`.

    Args:
        app: or any other object with `handle`.
        headers: of every request.
        request_class: a subclass of `Request` with what the app needs of its server, instead of
            sessions and uploads in memory.

    Attributes:
        cookies: by name; they may be changed. Paths, domains and ages are not heeded.
    """

    def __init__(
        self,
        app: Mountable,
        *,
        headers: Mapping[str, str] | None = None,
        request_class: type[Request] | None = None,
    ) -> None:
        self.app = app
        self.headers = {"Host": "localhost", **(headers or {})}
        self.request_class = request_class or in_memory()
        self.cookies: dict[str, str] = {}

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> Answer:
        """The answer to a request; arguments as for `begin`.

        Raises:
            LocalProtocolError: the handler waits for something, and was cancelled.
        """
        asking = self.begin(method, target, headers, **content)
        found: list[Any] = []
        asking.addBoth(found.append)
        if not found:
            asking.cancel()
            raise LocalProtocolError(f"the answer to {method} {target} is not there at once: await")
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return cast(Answer, found[0])

    def begin(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> Deferred[Answer]:
        """Sends a request; see `make_request` for further arguments.

        Returns:
            A Deferred of the answer. It fails with what a streamed body raised, and with
            LocalProtocolError for an upgrade. Cancelling it is the client's leaving.
        """
        channel = _Channel()
        request = self.make(method, target, headers, channel=channel, **content)
        handling = maybeDeferred(self.app.handle, request)
        running = handling.addCallback(
            lambda response: Deferred.fromCoroutine(self._read(request, response, channel))
        )

        def leave(_: object) -> None:
            channel.is_gone = True
            running.cancel()

        answer: Deferred[Answer] = Deferred(leave)
        running.chainDeferred(answer)
        return answer

    def make(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> Request:
        """A request with our headers and cookies; see `make_request`."""
        fields = {**self.headers, **(headers or {})}
        if self.cookies and "Cookie" not in fields:
            fields["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return make_request(method, target, fields, kind=self.request_class, **content)

    def keep(self, headers: Headers) -> None:
        """Keeps the cookies that an answer sets."""
        for line in headers.get_all("set-cookie"):
            pair, *attributes = line.split(";")
            name, _, value = pair.partition("=")
            self.cookies[name] = value
            if "max-age=0" in (attribute.strip().lower() for attribute in attributes):
                del self.cookies[name]

    async def _read(self, request: Request, response: Any, channel: _Channel) -> Answer:
        if not isinstance(response, Response):
            raise LocalProtocolError(f"{type(response).__name__} is no answer without a connection")
        is_bare = request.method == "HEAD" or response.status in _BODILESS
        body = await _collected(response, channel, is_bare=is_bare)
        self.keep(response.headers)
        return Answer(response.status, response.headers, body)

    get = partialmethod(ask, "GET")
    post = partialmethod(ask, "POST")
    put = partialmethod(ask, "PUT")
    patch = partialmethod(ask, "PATCH")
    delete = partialmethod(ask, "DELETE")
    aget = partialmethod(begin, "GET")
    apost = partialmethod(begin, "POST")
    aput = partialmethod(begin, "PUT")
    apatch = partialmethod(begin, "PATCH")
    adelete = partialmethod(begin, "DELETE")


def make_request(
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    data: Mapping[str, Any] | None = None,
    files: Mapping[str, tuple[str, str, bytes]] | None = None,
    json: Any = None,
    kind: type[Request] = Request,
    channel: Any = None,
) -> Request:
    """A request whose body is there, for an app's `handle` or for a function that takes one.

    Args:
        method: upper case.
        target: path and query, quoted.
        headers: further ones, or others.
        body: or instead of it:
        data: fields of a form, text, or a list of texts for several of one name.
        files: of a form, by field: name, content type, content.
        json: a value that msgspec encodes.
        kind: a subclass of `Request`.
        channel: `net.http.writer.Channel`, as far as the app looks at one.

    Raises:
        RefusedRequest: what no server would accept.
    """
    fields = {"Host": "localhost"}
    if files is not None:
        boundary = token_hex()
        body = _multipart(boundary, data or {}, files)
        fields["Content-Type"] = f"multipart/form-data; boundary={boundary}"
    elif data is not None:
        body, fields["Content-Type"] = urlencode(data, doseq=True).encode(), FORM_TYPE
    elif json is not None:
        body, fields["Content-Type"] = msgspec.json.encode(json), "application/json"
    if body:
        fields["Content-Length"] = str(len(body))
    fields.update(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    raw = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()
    framing = read_head(raw, method.encode(), raw.split(b" ", 2)[2], HeadLimits())
    parts = read_target(method, target.encode(), framing.host)
    return kind(channel, method, parts, framing, raw, body)


def _multipart(
    boundary: str, data: Mapping[str, Any], files: Mapping[str, tuple[str, str, bytes]]
) -> bytes:
    named = [
        (f'name="{name}"', value.encode())
        for name, values in data.items()
        for value in ([values] if isinstance(values, str) else values)
    ] + [
        (f'name="{field}"; filename="{name}"\r\nContent-Type: {content_type}', content)
        for field, (name, content_type, content) in files.items()
    ]
    start = f"--{boundary}\r\nContent-Disposition: form-data; "
    parts = [f"{start}{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in named]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


async def _collected(response: Response, channel: _Channel, *, is_bare: bool) -> bytes:
    body: Any = response.body
    if isinstance(body, bytes):
        return b"" if is_bare else body
    writer = BodyWriter(channel, response.length, chunked=False, trailers=response.trailers)
    try:
        if not is_bare:
            if callable(body):
                await body(writer)
            else:
                async for piece in body:
                    writer.write(piece)
            writer.finish()
    finally:
        writer.close()
        if hasattr(body, "aclose"):
            await body.aclose()
    return bytes(channel.written)


class _Channel:
    """What a request and its answer need of a connection."""

    peer = IPv4Address("TCP", "127.0.0.1", 49152)
    is_secure = False

    def __init__(self) -> None:
        self.is_gone = False
        self.written = bytearray()

    def write_bounded(self, data: bytes) -> None:
        self.written += data

    def drained(self) -> Deferred[None]:
        return succeed(None)

    def flush(self) -> None: ...

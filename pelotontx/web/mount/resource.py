"""`twisted.web` resources under a path of ours: Klein, WebSocketResource, static.File, guard.

    app.mount("/old", TwistedWeb(resource))

`twisted.web`'s own `Request` runs, on a channel of ours: the wire, its limits and its deadlines
stay with `net.http`, and nothing of `twisted.web`'s HTTP parser is there. A resource that takes the
transport over (a WebSocket) gets one that is connected as soon as `net.http` has handed it out.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.pages import notFound
from twisted.web.resource import IResource
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.web.mount.answer import HIGH_BYTES, LIMIT_BYTES, Answer, response_head
from pelotontx.web.mount.asked import client_address, origin_form, server_of
from pelotontx.web.mount.host import Host, Mounted
from pelotontx.web.mount.takeover import Takeover
from pelotontx.web.request import Request
from pelotontx.wire.http import RefusedRequest


class TwistedWeb(Mounted):
    """A tree of `twisted.web` resources.

    The body is read before the resource is rendered, as `twisted.web` does: in memory if it is
    announced as short, else in a temporary file.

    Args:
        resource: the root, an `IResource`; of a Klein app its ``resource()``.
        body_limit_bytes: the longest body, 413 past it; None: the server's ``http.body_limit``.
        unread_limit_bytes: what may wait for a client that reads slowly, of a resource that writes
            without being a producer; past it the connection is cut.
        parse_forms: forms of a POST become `request.args`. That reads a whole body into memory and
            stops the reactor meanwhile: False for resources that take large uploads.
        display_tracebacks: errors show them. Never for the public.
        request_factory: the class of requests, instead of `twisted.web.server.Request`.

    Raises:
        TypeError: not a resource.
    """

    def __init__(
        self,
        resource: Any,
        *,
        body_limit_bytes: int | None = None,
        unread_limit_bytes: int = LIMIT_BYTES,
        parse_forms: bool = True,
        display_tracebacks: bool = False,
        request_factory: type[WebRequest] = WebRequest,
    ) -> None:
        if not IResource.providedBy(resource):
            raise TypeError(
                f"a {type(resource).__name__} is not a twisted.web resource; "
                "of a Klein app its resource() is"
            )
        self._resource = resource
        self._body_limit_bytes = body_limit_bytes
        self._unread_limit_bytes = unread_limit_bytes
        self._parse_forms = parse_forms
        self._display_tracebacks = display_tracebacks
        self._request_factory = request_factory
        self._host: Host | None = None
        self._site: _Site

    def prepare(self, host: Host, name: str) -> None:
        self._host = host
        self._site = _Site(  # type: ignore[no-untyped-call]
            self._resource,
            requestFactory=self._request_factory,
            reactor=host.reactor,
            parsePOSTFormSubmission=self._parse_forms,
        )
        self._site.displayTracebacks = self._display_tracebacks

    def stop(self) -> None:
        """Ends all sessions: each has a timer."""
        if self._host is not None:
            for session in list(self._site.sessions.values()):
                session.expire()

    async def handle(self, request: Request) -> Response | Upgrade:
        """Answers a request that is under the mount's path.

        Raises:
            RefusedRequest: the body is too large, too slow or malformed.
        """
        if self._host is None:
            raise LocalProtocolError("a TwistedWeb was not prepared by a server")
        channel = _Channel(request, self._site, self._host, limit_bytes=self._unread_limit_bytes)
        await channel.receive(request, self._body_limit_bytes)
        return await channel.process()


class _Site(Site):
    """A `Site` whose resources begin at a mount's path instead of at the root."""

    def getResourceFor(self, request: Any) -> Any:
        # Both are decoded; a path like /a%2Fb is under the mount /a/b for us, and not in this tree.
        root: bytes = request.channel.root_path
        depth = root.count(b"/")
        above, request.postpath = request.postpath[:depth], request.postpath[depth:]
        if b"".join(b"/" + segment for segment in above) != root:
            return notFound()
        request.prepath = above
        return super().getResourceFor(request)  # type: ignore[no-untyped-call]


class _Channel:
    """What a `twisted.web` request sees of its connection.

    Attributes:
        site: whose resources answer.
        transport: None once a resource has taken it over.
        root_path: the mount's path, encoded as UTF-8.
    """

    def __init__(self, request: Request, site: _Site, host: Host, *, limit_bytes: int) -> None:
        self.site = site
        self._reactor = host.reactor
        self.root_path = request.root_path.encode()
        self._peer = client_address(request)
        self._server = server_of(request)
        self._is_secure = request.scheme == "https"
        self._producer: Any = None
        self._is_streaming = False  # the producer goes on by itself, until it is paused
        self._is_producer_paused = False
        self._is_pulling = False
        self._asked_for = 0  # bytes that were written
        self._answer = Answer(
            request,
            wheel=host.wheel,
            on_written=self._written,
            on_gone=self._gone,
            limit_bytes=limit_bytes,
        )
        self._takeover = Takeover(
            host.reactor,
            peer=self._peer,
            host=self.getHost(),
            on_taken=self._taken,
            on_lost=self.loseConnection,
        )
        # In HTTP/2 there is nothing to take over, and None says so.
        self.transport: Takeover | None = None if request.version == "2" else self._takeover
        factory: Any = site.requestFactory
        self._request: Any = factory(self)
        self._request.transport = self._takeover

    # For the mount.

    async def receive(self, request: Request, limit_bytes: int | None) -> None:
        """Reads the head and the body."""
        web: Any = self._request
        web.requestHeaders = headers = Headers()
        for name, value in request.headers.items():
            headers.addRawHeader(name.encode("latin-1"), value.encode("latin-1"))
        web.parseCookies()
        body = request.stream
        if limit_bytes is not None:
            body.limit_bytes = limit_bytes
        web.gotLength(body.length)
        try:
            async for piece in body:
                web.handleContentChunk(piece)
        except BaseException:
            self._answer.response.addErrback(lambda _: None)
            self._answer.response.cancel()  # all ends as if the client had left
            raise
        version = f"HTTP/{request.version}"
        self._line = request.method.encode(), origin_form(request), version.encode()

    def process(self) -> Deferred[Response | Upgrade]:
        """Renders; fires with the answer."""
        answer = self._answer
        answer.is_held = True  # what a resource has written when `render` returns leaves at once
        try:
            self._request.requestReceived(*self._line)
        except Exception:  # foreign code
            answer.fail(Failure())
        answer.release()
        return answer.response

    # For `twisted.web.server.Request`.

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        return IPv4Address("TCP", *self._server)

    def isSecure(self) -> bool:
        return self._is_secure

    def writeHeaders(self, version: bytes, code: int, reason: bytes, headers: Headers) -> None:
        """Status and fields; `headers` may be a list of pairs as well."""
        self._request.chunked = 0  # framing is not its business
        pairs = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, values in headers.getAllRawHeaders()
            for value in values
        ]
        self._answer.begin(response_head(int(code), pairs))
        # A body follows in this turn, or the client is to see the head (`request.write(b"")`).
        self._reactor.callLater(0, self._answer.open)

    def write(self, data: bytes) -> None:
        self._asked_for += len(data)
        self._answer.write(data)
        if self._answer.unwritten > HIGH_BYTES:
            self._pause_producer()

    def writeSequence(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def requestDone(self, request: Any) -> None:
        """The last byte was written."""
        self._answer.finish()
        self._takeover.let_go()

    def loseConnection(self) -> None:
        """The resource wants no more of this connection: its answer is cut."""
        self._answer.fail(Failure(ConnectionDone("closed by the resource")))

    abortConnection = loseConnection
    forceAbortClient = loseConnection

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._answer.fail(Failure(RefusedRequest(400, "malformed form")))

    def _protocolUpgradeForWebsockets(self, protocol: Any) -> None:
        """How `twisted.web.websocket` takes the transport over."""
        transport, self.transport = self._takeover, None
        transport.protocol = protocol
        protocol.makeConnection(transport)

    def _taken(self, protocol: Any) -> None:
        self._answer.replace(Upgrade(protocol))

    # Producers.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        self._is_streaming = streaming
        self._is_producer_paused = False
        if self._answer.is_gone:
            producer.stopProducing()
        elif streaming:
            if self._answer.unwritten > HIGH_BYTES:
                self._pause_producer()
        else:
            self._pull()

    def unregisterProducer(self) -> None:
        self._producer = None

    def _pause_producer(self) -> None:
        if self._producer is not None and self._is_streaming and not self._is_producer_paused:
            self._is_producer_paused = True
            self._producer.pauseProducing()

    def _written(self, size: int) -> None:
        if self._answer.unwritten > HIGH_BYTES // 2:
            return
        if self._is_producer_paused:
            self._is_producer_paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        elif not self._is_streaming:
            self._pull()

    def _pull(self) -> None:
        """Asks a pull producer for one piece after the other, as long as there is room."""
        if self._is_pulling:
            return  # this is called from its write
        self._is_pulling = True
        try:
            while self._producer is not None and self._answer.unwritten <= HIGH_BYTES // 2:
                before = self._asked_for
                self._producer.resumeProducing()
                if self._answer.is_held or self._asked_for == before:
                    break  # it writes later: `_written` comes back here then
        finally:
            self._is_pulling = False

    def _gone(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self._takeover.lose()
        if not self._request.finished:
            self._request.connectionLost(Failure(ConnectionDone("the client has gone")))

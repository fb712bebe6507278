"""Requests to other servers: treq, with deadlines and bounds on everything that it would wait for.

    answer = await fetch(reactor, "GET", "http://localhost:8080/", params={"page": "2"})
    answer.status, answer.headers.getRawHeaders("content-type"), answer.body

treq's documentation holds for all options. What is different from treq's own defaults: a whole
answer has a deadline and a largest size, redirects are not followed, and nothing is remembered from
one request to the next (cookies, connections) unless a client is shared. Certificates are verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IPolicyForHTTPS, IResponse

from pelotontx.errors import PelotonError, TimedOut

CONNECT_TIMEOUT_S = 5.0
HEAD_TIMEOUT_S = 10.0
TIMEOUT_S = 30.0
#: An API's answer is far shorter; whoever expects more says so.
LIMIT_BYTES = 1024 * 1024


class AnswerTooLong(PelotonError):
    """A server's answer was longer than wanted; the connection was closed.

    Attributes:
        limit_bytes: what was wanted.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the answer is longer than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of another server.

    Attributes:
        status: whatever it is: an error's status is no exception.
        headers: by any case of the name, each with its values: ``getRawHeaders``.
        body: decoded, if it came compressed.
    """

    status: int
    headers: Headers
    body: bytes

    def json(self, type: Any = Any) -> Any:
        """The body, decoded from JSON.

        Args:
            type: what it must be: any type that msgspec can check.

        Raises:
            msgspec.DecodeError: not JSON, or not of that type.
        """
        return msgspec.json.decode(self.body, type=type)


def http_client(
    reactor: Any,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    pool: HTTPConnectionPool | None = None,
    tls: IPolicyForHTTPS | None = None,
) -> HTTPClient:
    """A treq client, for several requests to one server on behalf of one user.

    It remembers cookies: whoever asks for several users needs several clients.

    Args:
        reactor: makes the connections.
        connect_timeout_s: for each address that a name has.
        pool: keeps connections open between requests; ``closeCachedConnections()`` is its
            owner's to call. Without, each request has a connection of its own.
        tls: whom to trust (`twisted.web.client.BrowserLikePolicyForHTTPS` with a root); without,
            the system's certificate authorities.
    """
    keeps = pool or HTTPConnectionPool(reactor, persistent=False)
    policy = {} if tls is None else {"contextFactory": tls}
    agent: IAgent = Agent(reactor, connectTimeout=connect_timeout_s, pool=keeps, **policy)
    return HTTPClient(agent)


def fetch(
    reactor: Any,
    method: str,
    url: str,
    *,
    client: HTTPClient | None = None,
    head_timeout_s: float = HEAD_TIMEOUT_S,
    timeout_s: float = TIMEOUT_S,
    limit_bytes: int = LIMIT_BYTES,
    allow_redirects: bool = False,
    **options: Any,
) -> Deferred[Answer]:
    """Asks a server and reads its whole answer.

    Cancelling closes the connection.

    Args:
        reactor: for the deadlines.
        method: upper case.
        url: http or https.
        client: as `http_client` makes them; None: one for this request.
        head_timeout_s: until the answer's head is there, connecting included.
        timeout_s: until all of it is there.
        limit_bytes: of the body, when decoded.
        allow_redirects: those of GET and HEAD, and 303, are followed, to any host: never for
            addresses that strangers choose.
        options: treq's: ``params``, ``headers``, ``data``, ``json``, ``files``, ``auth`` ...

    Raises:
        TimedOut: one of the deadlines has passed.
        AnswerTooLong: the body is longer than `limit_bytes`.
        twisted.internet.error.ConnectError, twisted.web.client.ResponseFailed ...: as treq's.
    """

    async def whole() -> Answer:
        request = (client or http_client(reactor)).request(
            method,
            url,
            allow_redirects=allow_redirects,
            unbuffered=True,
            reactor=reactor,
            **options,
        )
        response = await request.addTimeout(head_timeout_s, reactor, _timed_out)
        body = await read_body(response, limit_bytes=limit_bytes)
        return Answer(response.code, response.headers, body)

    return Deferred.fromCoroutine(whole()).addTimeout(timeout_s, reactor, _timed_out)


def _timed_out(outcome: Any, timeout_s: float) -> Any:
    if isinstance(outcome, Failure):  # treq wraps the cancellation in errors of its own
        raise TimedOut(timeout_s) from outcome.value
    return outcome


def read_body(response: IResponse, *, limit_bytes: int = LIMIT_BYTES) -> Deferred[bytes]:
    """Reads an answer's body; for those who look at its head first.

    Cancelling closes the connection. Twisted's `readBody` and treq's `content` leave it open when
    they are cancelled, and know no limit.

    Raises:
        AnswerTooLong: it is longer than `limit_bytes`.
        twisted.web.client.ResponseFailed: the connection was lost before its end.
    """
    body = _Body(limit_bytes)
    response.deliverBody(body)
    return body.whole


class _Body(Protocol):
    """Gathers a body up to a limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self.whole: Deferred[bytes] = Deferred(lambda _: self._close())

    def dataReceived(self, data: bytes) -> None:
        if self.whole.called:
            return
        self._size += len(data)
        if self._size > self._limit_bytes:
            self._close()
            self.whole.errback(AnswerTooLong(self._limit_bytes))
        else:
            self._pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(b"".join(self._pieces))
        else:
            self.whole.errback(reason)

    def _close(self) -> None:
        self._pieces.clear()
        if self.transport is not None:
            self.transport.loseConnection()

"""HTTP/1.1 for servers: requests in, responses out, deadlines, and hand-over to other protocols.

    factory = HTTPFactory(handle, wheel=Wheel(reactor), clock=reactor)
    listen(reactor, "tcp:8080", factory)

`handle(request)` is called when a head is complete, and returns a `Response` or an `Upgrade`, or a
coroutine or Deferred of one; the body may be coming still (`Request.is_complete`). One request a
connection is worked on at a time; pipelined ones wait, bounded, and are answered in order. When the
client is gone, a handler that is still at work is cancelled; one that only closed its sending side
gets its answer. Every write is backpressured: while the peer does not read, no
further request is taken, streams wait, and bodies in memory go out in slices.

What must not be understood in two ways is in `wire.http`; here are time, memory and writing:

    factory       makes connections, and drains them
    message       what a handler is given and what it returns; limits
    body          a request's body while it arrives, as its handler sees it
    writer        a response's body while it is made, likewise
    connection    reads requests, and leads from one to the next
    receive       takes bodies
    answer        writes what handlers returned
    deadline      how long everything may take
    client        requests to others
"""

from pelotontx.net.http.answer import SLICE_BYTES, OnAnswered
from pelotontx.net.http.body import RequestBody
from pelotontx.net.http.connection import Answer, Handle, HTTPConnection
from pelotontx.net.http.factory import HTTPFactory
from pelotontx.net.http.message import (
    Body,
    Headers,
    HTTPLimits,
    Request,
    Response,
    Upgrade,
)
from pelotontx.net.http.writer import BodyWriter, Channel

__all__ = [
    "SLICE_BYTES",
    "Answer",
    "Body",
    "BodyWriter",
    "Channel",
    "HTTPConnection",
    "HTTPFactory",
    "HTTPLimits",
    "Handle",
    "Headers",
    "OnAnswered",
    "Request",
    "RequestBody",
    "Response",
    "Upgrade",
]

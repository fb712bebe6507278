"""Where a streamed body is written, and what it needs of the connection.

`BodyWriter` is for handlers, who import it from `net.http`; `Channel` is what a connection that
carries requests must offer: HTTP/1.1's own, or each stream of HTTP/2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress

from pelotontx.errors import LocalProtocolError
from pelotontx.wire.http import response_field


class Channel(Protocol):
    """The connection, as requests and body writers see it.

    It gives its requests to the factory's `handle`, and cancels what that returned when the peer
    goes away. What is written here is framed already, except for a protocol with frames of its own.
    """

    @property
    def peer(self) -> IAddress | None:
        """Where it comes from."""

    @property
    def is_secure(self) -> bool:
        """Whether it is TLS's."""

    @property
    def is_gone(self) -> bool:
        """Whether the peer has gone, or does not want the answer any more."""

    def write_bounded(self, data: bytes) -> None:
        """Writes part of a body; raises `SlowConsumer` when too much waits for the peer."""

    def drained(self) -> Deferred[None]:
        """Fires when more may be written; cancelling one does not concern the others."""

    def flush(self) -> None:
        """Hands what was written to the kernel now, where that is possible."""


class _Room:
    """Awaited after a write: the peer has taken enough for the next."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __await__(self) -> Generator[Any, Any, None]:
        return self._channel.drained().__await__()


class BodyWriter:
    """Where a streamed body is written; given to `Response.body` when that is a function.

    Args:
        channel: the connection.
        length: the announced bytes; None if the end will tell.
        chunked: writes chunks.
        trailers: `Response.trailers`.
        takes_trailers: the peer asked for them; else they are dropped.

    Attributes:
        written: bytes of the body so far.
        trailers: fields to follow the body, by name; those with an empty value are left out.
        is_finished: the peer has gone, or the body is over; what is written is dropped.
    """

    __slots__ = (
        "_announced",
        "_channel",
        "_chunked",
        "_left",
        "_room",
        "_takes_trailers",
        "_waiting",
        "is_finished",
        "trailers",
        "written",
    )

    def __init__(
        self,
        channel: Channel,
        length: int | None,
        *,
        chunked: bool,
        trailers: dict[str, str] | None = None,
        takes_trailers: bool = False,
    ) -> None:
        self._channel = channel
        self._left = length
        self._chunked = chunked
        self._room = _Room(channel)
        self._waiting: list[Deferred[None]] = []
        self.trailers = {} if trailers is None else trailers
        self._announced = frozenset(self.trailers)
        self._takes_trailers = takes_trailers
        self.written = 0
        self.is_finished = False

    def write(self, data: bytes) -> Awaitable[None]:
        """Writes a piece now; await what it returns, unless pieces are few.

        Returns:
            Done when the peer has taken enough for more to be written; cancelling is safe.

        Raises:
            SlowConsumer: `HTTPLimits.unread_bytes` are waiting for the peer, which is aborted.
            LocalProtocolError: more than the announced length.
        """
        if not data or self.is_finished:
            return self._room
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise LocalProtocolError("more body than the announced length")
        self.written += len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._channel.write_bounded(data)
        return self._room

    def drain(self) -> Deferred[None]:
        """Fires when the peer has taken enough for more to be written; cancelling is safe."""
        return self._channel.drained()

    def flush(self) -> None:
        """Hands the head and what was written to the kernel now.

        Without it this happens at the end of the reactor's turn, which is soon enough unless the
        handler keeps the reactor busy.
        """
        if not self.is_finished:
            self._channel.flush()

    @property
    def finished(self) -> Deferred[None]:
        """Fires when the peer has gone, or the body is over: a Deferred of its own each time.

        Cancelling is safe. A handler that waits for something else is cancelled when its peer
        goes away, just after this has fired.
        """
        finished: Deferred[None] = Deferred(self._forget)
        if self.is_finished:
            finished.callback(None)
        else:
            self._waiting.append(finished)
        return finished

    def _forget(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    # For the connection.

    def finish(self) -> None:
        """The body is over.

        Raises:
            LocalProtocolError: less than the announced length, or a trailer that was not
                announced or may not be sent.
        """
        if self._left:
            raise LocalProtocolError("less body than the announced length")
        if self._chunked:
            fields = (response_field(name, value) for name, value in self.trailing())
            self._channel.write_bounded(b"0\r\n%b\r\n" % b"".join(fields))
        self.close()

    def trailing(self) -> list[tuple[str, str]]:
        """The fields that follow the body.

        Raises:
            LocalProtocolError: one that was not announced.
        """
        for name in self.trailers.keys() - self._announced:
            raise LocalProtocolError(f"{name} was not announced in Response.trailers")
        if not self._takes_trailers:
            return []
        return [(name, value) for name, value in self.trailers.items() if value]

    def close(self) -> None:
        """Nothing is written any more."""
        self.is_finished = True
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

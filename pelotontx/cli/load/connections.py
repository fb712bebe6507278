"""The connections of a run, and opening many of them without a flood."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from pelotontx.cli.load.events import Publisher, Subscriber
from pelotontx.cli.load.ledger import Sender
from pelotontx.errors import RemoteProtocolError
from pelotontx.flow import later
from pelotontx.net.websocket.client import Connection
from pelotontx.wire import juggler

#: Opening handshakes at a time: a server that is to be measured is not to be flooded first.
HANDSHAKES: Final = 20

Step: TypeAlias = Callable[[], Coroutine[Deferred[Any], Any, None]]


class Link:
    """One connection and what is noted about it.

    Attributes:
        connection: None before it is open.
        is_usable: it is open, and neither closing nor clogged.
    """

    __slots__ = ("connection", "is_usable")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.is_usable = False

    def decoded(self, frame: bytes) -> juggler.Message | None:
        """A message of the server; None, and the connection closed, when it is none."""
        try:
            return juggler.decode_response(frame)
        except RemoteProtocolError as error:
            self.is_usable = False
            if self.connection is not None:
                self.connection.close(error.close_code, error.reason)
            return None


class SendingLink(Link):
    """A connection that calls or publishes, and its book."""

    __slots__ = ("book",)

    def __init__(self, book: Sender | Publisher) -> None:
        super().__init__()
        self.book = book


class SubscribingLink(Link):
    """A connection that gets events, and its book.

    Attributes:
        uuid: of the SUB.
        confirmed: fires with the answer to it.
    """

    __slots__ = ("book", "confirmed", "uuid")

    def __init__(self, book: Subscriber, uuid: str) -> None:
        super().__init__()
        self.book = book
        self.uuid = uuid
        self.confirmed: Deferred[juggler.Message] = Deferred()


def in_turn(
    reactor: Any, steps: Iterable[Step], *, at_once: int, interval_s: float
) -> Deferred[Any]:
    """Runs coroutines in order, `at_once` at a time, each begun `interval_s` after the one before.

    Returns:
        a Deferred that fires when all are done. The first failure cancels the others and is what it
        errbacks with; cancelling cancels all.
    """
    numbered = enumerate(steps)
    began_s = reactor.seconds()

    async def work() -> None:
        for number, step in numbered:
            wait_s = began_s + number * interval_s - reactor.seconds()
            if wait_s > 0:
                await later(reactor, wait_s)
            await step()

    workers = [Deferred.fromCoroutine(work()) for _ in range(at_once)]

    def first(failure: Failure) -> Failure:
        for worker in workers:
            worker.cancel()
        if isinstance(failure.value, FirstError):
            return failure.value.subFailure
        return failure

    return gatherResults(workers, consumeErrors=True).addErrback(first)

"""Short questions to Redis servers, each on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, FailureGroup, race
from twisted.internet.protocol import Factory

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.address import RedisAddress
from pelotontx.net.redis.connection import Argument, RedisConnection, Reply
from pelotontx.net.redis.link import log_in
from pelotontx.net.tcp import corked

T = TypeVar("T")


class Questions:
    """Asks; what is under way can be ended.

    Args:
        reactor: connects and keeps time.
        timeout_s: for connecting, and again for the replies to one question.
    """

    def __init__(self, reactor: Any, *, timeout_s: float) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._factory = Factory.forProtocol(RedisConnection)
        self._factory.noisy = False
        self._running: set[Deferred[Any]] = set()
        self._open: set[RedisConnection] = set()

    async def first(self, questions: Iterable[Coroutine[Deferred[Any], Any, T]]) -> T:
        """Runs all at the same time; the first result that comes, the others are cancelled.

        Raises:
            BrokerUnavailable: all have failed; the text is the last one's.
        """
        running = [self._track(question) for question in questions]
        try:
            return (await race(running))[1]
        except FailureGroup as group:
            last = group.failures[-1].value
            raise BrokerUnavailable(str(last)) from last

    async def until(
        self,
        questions: Iterable[Coroutine[Deferred[Any], Any, T]],
        is_enough: Callable[[T], bool],
    ) -> list[T]:
        """Runs all at the same time, up to a result that is enough; all results by then.

        Raises:
            BrokerUnavailable: all have failed; the text is the last one's.
        """
        results: list[T] = []

        async def note(question: Coroutine[Deferred[Any], Any, T]) -> None:
            result = await question
            results.append(result)
            if not is_enough(result):
                raise BrokerUnavailable("one answer is not enough")

        try:
            await self.first(note(question) for question in questions)
        except BrokerUnavailable:
            if not results:
                raise
        return results

    def _track(self, question: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        result: Deferred[T] = Deferred.fromCoroutine(question)
        self._running.add(result)

        def ended(outcome: T) -> T:
            self._running.discard(result)
            return outcome

        result.addBoth(ended)
        return result

    async def ask(self, address: RedisAddress, *commands: tuple[Argument, ...]) -> list[Reply]:
        """Connects, logs in, sends the commands and closes; the replies.

        Raises:
            BrokerUnavailable: no answer in time.
            ResponseError: an error was the answer.
        """
        endpoint = address.endpoint(corked(self._reactor), timeout_s=self._timeout_s)
        connection: Any = await endpoint.connect(self._factory)
        self._open.add(connection)
        connection.lost.wait().addCallback(lambda _: self._open.discard(connection))
        timeout = self._reactor.callLater(self._timeout_s, connection.drop)
        try:
            await log_in(connection, address)
            return [await connection.execute_command(*command) for command in commands]
        finally:
            if timeout.active():
                timeout.cancel()
            connection.drop()

    def stop(self) -> Deferred[Any]:
        """Cancels all; fires when nothing is left in the reactor."""
        for question in tuple(self._running):
            question.cancel()
        return DeferredList([connection.lost.wait() for connection in self._open])

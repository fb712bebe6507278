"""Functions that anybody may call by URI.

    callee = Callee()

    @callee.function("shop.price")
    def price(args):
        return {"cents": 1200}

A function gets the call's decoded JSON args (None for none) and gives back what JSON can carry. It
may be plain, a coroutine function, or return a Deferred. What it raises reaches the caller as
``{"error": {"message": str(exception)}}``.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutine
from random import random
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import (
    BrokerError,
    BrokerUnavailable,
    CallFailed,
    LocalProtocolError,
)
from pelotontx.flow import Tasks, later
from pelotontx.wire import juggler

Function: TypeAlias = Callable[[Any], Any]
_F = TypeVar("_F", bound=Function)
# Results on their way to the broker; past it no calls are taken, so that a slow broker slows us.
_STORING_LIMIT: Final = 512
# Attempts to take calls that may fail before it is worth a line: connecting takes a moment.
_SILENT_ATTEMPTS: Final = 4
# Between two lines about lost results: a full list loses thousands.
_WARN_EVERY_S: Final = 5.0


class Callee:
    """A set of functions by URI."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}

    def function(self, uri: str) -> Callable[[_F], _F]:
        """Registers the decorated function for calls of `uri`.

        Raises:
            LocalProtocolError: when the URI is empty or taken.
        """

        def register(function: _F) -> _F:
            if not uri or uri in self.functions:
                raise LocalProtocolError(f"the URI {uri!r} is {'taken' if uri else 'empty'}")
            self.functions[uri] = function
            return function

        return register


class CalleeService(Service):
    """Takes calls, runs functions, stores results.

    Args:
        callee: the functions.
        source: the broker's callee side; ours alone.
        clock: keeps time.
        concurrency: how many calls run at once; no more are taken from the broker.
        result_limit_bytes: a longer result becomes an error.
        stop_timeout_s: how long a stop waits for what runs; then it is cancelled.
    """

    _log = Logger()

    def __init__(
        self,
        callee: Callee,
        source: BrokerCallee,
        *,
        clock: IReactorTime,
        concurrency: int = 64,
        result_limit_bytes: int = 1024 * 1024,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._functions = callee.functions
        self._source = source
        self._clock = clock
        self._concurrency = concurrency
        self._result_limit_bytes = result_limit_bytes
        self._stop_timeout_s = stop_timeout_s
        self._loop = Tasks()
        self._calls = Tasks()
        self._is_stopping = False
        self._storing = 0
        self._room: Deferred[None] | None = None
        self.calls_run = 0
        self.calls_failed = 0
        self.results_lost = 0
        self._warned_s = -_WARN_EVERY_S

    @property
    def is_taking(self) -> bool:
        """Whether it waits for calls; false when something that must not happen has ended that."""
        return len(self._loop) > 0 or not self._functions

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._source.start()
        self._loop.spawn(self._take_calls())

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Takes no more, finishes what runs, lets go of the broker."""
        self._is_stopping = True
        await self._loop.stop()
        deadline_s = self._clock.seconds() + self._stop_timeout_s
        while self._calls or self._storing:
            left_s = deadline_s - self._clock.seconds()
            if left_s <= 0:
                break
            self._room = Deferred()
            await self._room.addTimeout(left_s, self._clock).addErrback(lambda _: None)
        await self._calls.stop()
        await self._source.stop()

    async def _take_calls(self) -> None:
        uris = tuple(self._functions)
        attempt = 0
        while uris:
            limit = min(self._concurrency - len(self._calls), _STORING_LIMIT - self._storing)
            if limit <= 0:
                self._room = Deferred()
                await self._room
                continue
            try:
                calls = await self._source.take_calls(uris, limit)
            except BrokerUnavailable as error:
                # Consumers try for ever; jitter keeps a fleet from coming back in step.
                attempt += 1
                if attempt == _SILENT_ATTEMPTS:
                    self._log.warn("No calls can be taken, trying on: {error}", error=error)
                await later(self._clock, random() * 0.05 * 2 ** min(attempt, 6))
                continue
            if attempt >= _SILENT_ATTEMPTS:
                self._log.info("Calls can be taken again")
            attempt = 0
            for call in calls:
                self._run(call)

    def _run(self, call: IncomingCall) -> None:
        """Runs one call; a plain function costs no task, since this path is hot."""
        left_s = call.expires_at_s - self._clock.seconds()
        if left_s <= 0:
            return
        self.calls_run += 1
        try:
            args = msgspec.json.decode(call.args) if call.args else None
            result = self._functions[call.uri](args)
            if isinstance(result, Deferred) or iscoroutine(result):
                self._calls.spawn(self._finish(call, result, left_s))
                return
            encoded = self._encoded(result)
        except (Exception, SystemExit) as error:  # the user's code
            encoded = self._encoded_error(call, error)
        self._store(call, encoded)

    async def _finish(self, call: IncomingCall, result: Any, left_s: float) -> None:
        """Waits for what an asynchronous function gives, as long as somebody waits for it."""
        if iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        deadline = self._clock.callLater(left_s, result.cancel)
        try:
            encoded = self._encoded(await result)
        except (Exception, SystemExit) as error:  # the user's code
            if not deadline.active():
                self._log.warn("{uri}: its time was over before it was done", uri=call.uri)
                return
            if self._is_stopping and isinstance(error, CancelledError):
                raise
            encoded = self._encoded_error(call, error)
        finally:
            if deadline.active():
                deadline.cancel()
            self._make_room()
        self._store(call, encoded)

    def _store(self, call: IncomingCall, encoded: bytes) -> None:
        """Stores a result; meanwhile further calls are taken."""
        self._storing += 1
        stored = self._source.store_result(call, encoded)
        stored.addCallbacks(self._stored, self._not_stored, errbackArgs=(call,))

    def _stored(self, result: object) -> None:
        self._storing -= 1
        if self._room is not None:
            self._make_room()

    def _not_stored(self, failure: Failure, call: IncomingCall) -> None:
        self._stored(failure)
        self.results_lost += 1
        if failure.check(BrokerError) is None:
            self._log.failure("{uri}: a result is lost", failure, uri=call.uri)
        elif self._clock.seconds() >= self._warned_s + _WARN_EVERY_S:
            self._warned_s = self._clock.seconds()
            self._log.warn(
                "{uri}: a result is lost ({count} so far): {error}",
                uri=call.uri,
                count=self.results_lost,
                error=failure.value,
            )

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            # In a turn of its own: until then the call that ends still counts, and where results
            # are stored many at a time, there is room for as many.
            self._clock.callLater(0, room.callback, None)

    def _encoded(self, result: Any) -> bytes:
        encoded = msgspec.json.encode(result)
        if len(encoded) > self._result_limit_bytes:
            raise CallFailed({"message": f"the result has over {self._result_limit_bytes} bytes"})
        return encoded

    def _encoded_error(self, call: IncomingCall, error: BaseException) -> bytes:
        self.calls_failed += 1
        try:
            if isinstance(error, CallFailed):  # raised on purpose
                return msgspec.json.encode({"error": error.payload})
            self._log.failure("{uri} failed", uri=call.uri)
            return juggler.encode_error(str(error) or type(error).__name__)
        except Exception:  # an error that cannot be told
            self._log.failure("{uri} failed", uri=call.uri)
            return juggler.encode_error(type(error).__name__)

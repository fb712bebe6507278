"""Functions that anybody may call by URI.

    callee = Callee()

    @callee.function("shop.price")
    def price(name: str, quantity: int = 1) -> Price:
        return Price(cents=...)

Where a function runs. A plain function may block: it runs in a thread of the callee's own. A
coroutine function, or one that returns a Deferred and says so in its return type, runs in the
reactor's thread. So does a plain function with ``inline=True``, at a fraction of the cost: for what
takes microseconds, since nothing else goes on meanwhile.

What it gets. Args are JSON; null and none are the same.

- One parameter without a type hint: the decoded args, None for none.
- One parameter with a type hint: the args decoded into that type, any that msgspec knows (``int``,
  ``list[str]``, a Struct, a dataclass, a TypedDict ...). None: its default, if it has one.
- Several parameters, or keyword-only ones: an object by their names or an array in their order.
  Each needs a type hint.
- No parameter: null, ``{}`` or ``[]``.

Nothing is converted: ``"1"`` is no int. Args that do not fit are answered with an error of code 400
whose message says which (``shop.price: args.quantity: expected int, got str``), and the function is
not run.

What it gives back is whatever msgspec can encode as JSON. What it raises reaches the caller as
``{"error": {"message": str(exception)}}``; `CallFailed` says more, and is not logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutine
from typing import Any, Final, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.backend.results import Results
from pelotontx.backend.signature import Function, Signature, is_asynchronous, read_signature
from pelotontx.backend.taking import Taker
from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import CallFailed, InvalidArguments, LocalProtocolError
from pelotontx.net.threads import ThreadPool
from pelotontx.net.wheel import Timer, Wheel
from pelotontx.wire import juggler

_F = TypeVar("_F", bound=Function)
# Results on their way to the broker; past it no calls are taken, so that a slow broker slows us.
_STORING_LIMIT: Final = 512
# A call is taken for a thread that is busy when it will be free after about this time: less than
# what another process would need to take it.
_SOON_S: Final = 0.002
# An error's traceback in the log: the text of an exception has any length.
_TRACEBACK_CHARS: Final = 16384
# What is cancelled at a stop has this time to end.
_CANCEL_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Registered:
    """A function of a `Callee`.

    Attributes:
        signature: how it is called.
        in_thread: whether it may block.
    """

    signature: Signature
    in_thread: bool


class Callee:
    """A set of functions by URI."""

    def __init__(self) -> None:
        self.functions: dict[str, Registered] = {}

    def function(self, uri: str, *, inline: bool = False) -> Callable[[_F], _F]:
        """Registers the decorated function for calls of `uri`; the module says how it is called.

        Args:
            uri: what clients call.
            inline: runs it in the reactor's thread. For plain functions that take microseconds, and
                for those that return a Deferred without a return type that says so.

        Raises:
            LocalProtocolError: when the URI is empty or taken, or when parameters cannot be filled
                from JSON or not in one clear way.
        """

        def register(function: _F) -> _F:
            if not uri or uri in self.functions:
                raise LocalProtocolError(f"the URI {uri!r} is {'taken' if uri else 'empty'}")
            in_thread = not inline and not is_asynchronous(function)
            self.functions[uri] = Registered(read_signature(uri, function), in_thread)
            return function

        return register


class CalleeService(Service):
    """Takes calls, runs functions, stores results.

    Calls wait in the broker, where any process can take them, not here. Of functions in the
    reactor's thread so many are taken that `concurrency` run at a time; of those in threads as many
    as there are free threads, and at most one more for each thread where it will start within about
    two milliseconds, judged by how long the last ones ran. Neither kind waits for the other: a
    callee with both has two loops, each with a callee side of the broker for itself.

    Args:
        callee: the functions.
        new_source: makes a callee side of the broker, ours alone.
        clock: keeps time; a reactor when a function runs in a thread.
        concurrency: how many calls of a kind are taken at a time.
        threads: how many functions run in threads at a time.
        result_limit_bytes: a longer result becomes an error, a longer error a short one.
        stop_timeout_s: how long a stop waits for what runs and for what is to be stored. Then
            coroutines and Deferreds are cancelled, threads left behind.
        on_failure: called when something that must not happen has ended the taking of calls, so
            that `is_taking` becomes false; that is logged.

    Attributes:
        calls_run: functions that were called.
        calls_failed: those that raised something.
        calls_invalid: calls whose args were not what the function takes.
    """

    _log = Logger()

    def __init__(
        self,
        callee: Callee,
        new_source: Callable[[], BrokerCallee],
        *,
        clock: IReactorTime,
        concurrency: int = 256,
        threads: int = 8,
        result_limit_bytes: int = 1024 * 1024,
        stop_timeout_s: float = 10.0,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        self._functions = callee.functions
        self._clock = clock
        self._wheel = Wheel(clock)
        self._concurrency = concurrency
        self._result_limit_bytes = result_limit_bytes
        self._stop_timeout_s = stop_timeout_s
        self._on_failure = on_failure
        self._results = Results(clock, self._changed)
        self._waited_for: dict[Timer, tuple[IncomingCall, Deferred[Any]]] = {}
        self._is_cancelling = False
        self._idle: Deferred[None] | None = None
        self.calls_run = 0
        self.calls_failed = 0
        self.calls_invalid = 0
        self._expired = 0
        self._takers: list[Taker] = []
        here = [uri for uri, function in self._functions.items() if not function.in_thread]
        if here:
            self._takers.append(self._taker(new_source(), here, self._room_here))
        self._pool: ThreadPool[IncomingCall] | None = None
        threaded = [uri for uri, function in self._functions.items() if function.in_thread]
        if threaded:
            size = min(threads, concurrency)
            self._pool = ThreadPool(IReactorFromThreads(clock), size, name="callee")
            room = partial(self._room_in, self._pool)
            self._takers.append(self._taker(new_source(), threaded, room))

    def _taker(self, source: BrokerCallee, uris: Sequence[str], room: Callable[[], int]) -> Taker:
        return Taker(
            source,
            uris,
            clock=self._clock,
            room=room,
            run=self._run,
            overdue=self._overdue,
            on_failure=self._on_failure,
        )

    @property
    def is_taking(self) -> bool:
        """Whether it waits for calls; false when something that must not happen has ended that."""
        return all(taker.is_taking for taker in self._takers)

    @property
    def calls_running(self) -> int:
        """How many functions run."""
        threads = 0 if self._pool is None else self._pool.unfinished - self._pool.queued
        return len(self._waited_for) + threads

    @property
    def calls_queued(self) -> int:
        """How many calls wait for a thread."""
        return 0 if self._pool is None else self._pool.queued

    @property
    def calls_expired(self) -> int:
        """How many calls were over before their result could be stored."""
        return self._expired + self._results.expired

    @property
    def results_lost(self) -> int:
        """How many results could not be stored while somebody waited for them."""
        return self._results.lost

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        for taker in self._takers:
            taker.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Takes no more, finishes what runs, stores what is to be stored, lets go of the broker."""
        for taker in self._takers:
            await taker.stop_taking()
        await self._until_idle(self._stop_timeout_s)
        self._is_cancelling = True
        for _, result in tuple(self._waited_for.values()):
            result.cancel()
        queued = self.calls_queued
        left = [] if self._pool is None else [call.uri for call in self._pool.stop()]
        if self._waited_for:
            await self._until_idle(_CANCEL_TIMEOUT_S)
        left += [call.uri for call, _ in self._waited_for.values()]
        if left:
            self._log.warn(
                "Stopped while {uris} ran; calls that waited for a thread, not run: {count}",
                uris=", ".join(sorted(left)),
                count=queued,
            )
        self._results.give_up()
        self._wheel.stop()
        for taker in self._takers:
            await taker.stop()

    async def _until_idle(self, timeout_s: float) -> None:
        """Until nothing runs and every result is stored."""
        deadline_s = self._clock.seconds() + timeout_s
        while self._waited_for or self._results.unstored or (self._pool and self._pool.unfinished):
            left_s = deadline_s - self._clock.seconds()
            if left_s <= 0:
                return
            self._idle = Deferred()
            await self._idle.addTimeout(left_s, self._clock).addErrback(lambda _: None)

    def _changed(self) -> None:
        """Something has ended: there may be room for calls, or nothing left to wait for."""
        for taker in self._takers:
            taker.wake()
        if self._idle is not None:
            idle, self._idle = self._idle, None
            self._clock.callLater(0, idle.callback, None)

    def _room_here(self) -> int:
        running = len(self._waited_for)
        return min(self._concurrency - running, _STORING_LIMIT - self._results.unstored)

    def _room_in(self, pool: ThreadPool[IncomingCall]) -> int:
        room = min(self._concurrency - pool.unfinished, _STORING_LIMIT - self._results.unstored)
        return min(room, pool.room(_SOON_S))

    def _overdue(self) -> int:
        """How many functions run though nobody waits: in threads, or in spite of a cancelling."""
        running = [call for call, _ in self._waited_for.values()]
        if self._pool is not None:
            running += self._pool.running
        now_s = self._clock.seconds()
        return sum(call.expires_at_s <= now_s for call in running)

    def _run(self, call: IncomingCall, source: BrokerCallee) -> None:
        """Runs one call; a plain function costs no task, since this path is hot."""
        left_s = call.expires_at_s - self._clock.seconds()
        if left_s <= 0:
            self._expired += 1
            return
        try:
            function = self._functions[call.uri]
            signature = function.signature
            args = signature.decode(call.args)
            if function.in_thread:
                self._run_in_thread(call, source, signature.call, args)
                return
            self.calls_run += 1
            result = signature.call(args)
            if isinstance(result, Deferred) or iscoroutine(result):
                self._wait_for(call, source, result, left_s)
                return
            encoded = self._encoded(result)
        except BaseException as error:  # the user's code; signals do not raise under a reactor
            encoded = self._failed(call, error)
        self._results.store(source, call, encoded)

    def _wait_for(
        self, call: IncomingCall, source: BrokerCallee, result: Any, left_s: float
    ) -> None:
        """Waits for what an asynchronous function gives, as long as its caller does."""
        if not isinstance(result, Deferred):
            result = Deferred.fromCoroutine(result)
        deadline = self._wheel.call_later(left_s, result.cancel)
        self._waited_for[deadline] = call, result
        result.addBoth(self._ended, call, source, deadline)

    def _ended(
        self, outcome: Any, call: IncomingCall, source: BrokerCallee, deadline: Timer
    ) -> None:
        del self._waited_for[deadline]
        self._changed()
        if not deadline.is_pending:
            self._late(call)
            return
        deadline.cancel()
        try:
            if isinstance(outcome, Failure):
                assert outcome.value is not None
                if self._is_cancelling and outcome.check(CancelledError):
                    return
                encoded = self._failed(call, outcome.value, outcome)
            else:
                encoded = self._encoded(outcome)
        except BaseException as error:  # what cannot be encoded
            encoded = self._failed(call, error)
        self._results.store(source, call, encoded)

    def _run_in_thread(
        self, call: IncomingCall, source: BrokerCallee, function: Function, args: Any
    ) -> None:
        assert self._pool is not None
        work = partial(self._work, call, function, args)
        self._pool.run(call, work, partial(self._worked, call, source))

    def _work(self, call: IncomingCall, function: Function, args: Any) -> Any:
        """In a thread: the encoded result, a coroutine to be run, None when time is over."""
        if call.expires_at_s <= self._clock.seconds():
            return None
        result = function(args)
        if isinstance(result, Deferred):
            raise LocalProtocolError(
                f"{call.uri} gave a Deferred from a thread: "
                "name that as its return type, or register it with inline=True"
            )
        return result if iscoroutine(result) else self._encoded(result)

    def _worked(
        self, call: IncomingCall, source: BrokerCallee, result: Any, error: BaseException | None
    ) -> None:
        self._changed()
        if result is None and error is None:
            self._expired += 1
            return
        self.calls_run += 1
        left_s = call.expires_at_s - self._clock.seconds()
        if iscoroutine(result):
            self._wait_for(call, source, result, left_s)
            return
        encoded: bytes = self._failed(call, error) if error is not None else result
        if left_s > 0:
            self._results.store(source, call, encoded)
        else:
            self._late(call)

    def _late(self, call: IncomingCall) -> None:
        self._expired += 1
        self._log.warn("{uri}: its time was over before it was done", uri=call.uri)

    def _encoded(self, result: Any) -> bytes:
        encoded = msgspec.json.encode(result)
        if len(encoded) > self._result_limit_bytes:
            raise CallFailed({"message": f"the result has over {self._result_limit_bytes} bytes"})
        return encoded

    def _failed(
        self, call: IncomingCall, error: BaseException, failure: Failure | None = None
    ) -> bytes:
        """Counts and logs an error, and tells it as a result."""
        if isinstance(error, InvalidArguments):
            self.calls_invalid += 1
        else:
            self.calls_failed += 1
        is_on_purpose = isinstance(error, CallFailed)
        try:
            if isinstance(error, CallFailed):
                encoded = msgspec.json.encode({"error": error.payload})
            else:
                encoded = juggler.encode_error(str(error) or type(error).__name__)
        except BaseException:  # an error that cannot be told
            encoded = juggler.encode_error(type(error).__name__)
            is_on_purpose = False
        if not is_on_purpose:
            self._log_failure(call, failure or Failure(error), len(encoded))
        if len(encoded) > self._result_limit_bytes:
            return juggler.encode_error(f"the error has over {self._result_limit_bytes} bytes")
        return encoded

    def _log_failure(self, call: IncomingCall, failure: Failure, length: int) -> None:
        if length <= _TRACEBACK_CHARS:
            self._log.failure("{uri} failed", failure, uri=call.uri)
            return
        self._log.critical(
            "{uri} failed\n{traceback} ...",
            uri=call.uri,
            traceback=failure.getTraceback()[:_TRACEBACK_CHARS],
        )

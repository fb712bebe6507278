"""A callee's service on a broker's side that does what the test says."""

import json
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.broker.interface import IncomingCall, ResultStored
from pelotontx.errors import BrokerUnavailable

# Past it a test fails instead of hanging.
THREAD_TIMEOUT_S = 20


class RecordingSource:
    """A broker's callee side that hands out calls when the test says so."""

    available = True

    def __init__(self) -> None:
        self.uris: tuple[str, ...] = ()
        self.waiting: Deferred[list[IncomingCall]] | None = None
        self.limits: list[int] = []
        self.attempts: list[str] = []
        self.results: list[tuple[str, Any]] = []
        self.is_down = False
        self.refuses: Exception | None = None
        self.unanswered: list[ResultStored] | None = None
        self.started = self.stopped = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> Deferred[None]:
        self.stopped = True
        return succeed(None)

    def take_calls(self, uris: Any, limit: int) -> Deferred[list[IncomingCall]]:
        self.uris = uris
        self.limits.append(limit)
        if self.is_down:
            return fail(BrokerUnavailable("down"))
        self.waiting = Deferred()
        return self.waiting

    def give(self, *calls: IncomingCall) -> None:
        waiting, self.waiting = self.waiting, None
        assert waiting is not None
        waiting.callback(list(calls))

    def store_result(self, call: IncomingCall, args: bytes, stored: ResultStored) -> None:
        self.attempts.append(call.msg_uuid)
        if self.refuses is not None:
            stored(self.refuses)  # type: ignore[arg-type]
            return
        self.results.append((call.msg_uuid, json.loads(args)))
        if self.unanswered is not None:
            self.unanswered.append(stored)
        else:
            stored(None)


@implementer(IReactorFromThreads)
class ThreadedClock(Clock):
    """Time under control, and a queue of what threads want done."""

    def __init__(self) -> None:
        super().__init__()
        self.wakeups: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def callFromThread(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self.wakeups.put(partial(function, *args, **kwargs))

    def until(self, is_so: Callable[[], object]) -> None:
        while not is_so():
            self.wakeups.get(timeout=THREAD_TIMEOUT_S)()
            self.advance(0)


def call(uri: str, name: str = "m", args: bytes = b"1", expires_at_s: float = 10) -> IncomingCall:
    return IncomingCall(uri, "c", name, args, expires_at_s)


class CalleeCase(SynchronousTestCase):
    """`start` the service; its first callee side is `source`, a second one `sources[1]`."""

    def setUp(self) -> None:
        self.clock = ThreadedClock()
        self.sources: list[RecordingSource] = []
        self.callee = Callee()

    @property
    def source(self) -> RecordingSource:
        return self.sources[0]

    def new_source(self) -> RecordingSource:
        self.sources.append(RecordingSource())
        return self.sources[-1]

    def start(self, **options: Any) -> CalleeService:
        service = CalleeService(self.callee, self.new_source, clock=self.clock, **options)
        service.startService()
        # Whatever a test leaves running, its threads end with it.
        self.addCleanup(self.clock.pump, [60, 60])
        self.addCleanup(service.stopService)
        return service

"""Functions that block in shared threads: real threads, and a reactor that is the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.threads import SharedThreads
from pelotontx.wire.http import RefusedRequest
from tests.unit.backend.callee_case import THREAD_TIMEOUT_S, ThreadedClock


class Reactor(ThreadedClock):
    """One that ends when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.triggers: list[Callable[[], object]] = []

    def addSystemEventTrigger(self, *trigger: Any) -> None:
        phase, event, function = trigger
        assert (phase, event) == ("during", "shutdown")
        self.triggers.append(function)

    def end(self) -> None:
        for function in self.triggers:
            function()


class SharedThreadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.addCleanup(self.reactor.end)
        self.gate = threading.Event()
        self.addCleanup(self.gate.set)
        self.shared = SharedThreads(self.id(), 2, waiting=1)

    def run_one(self, function: Callable[[], Any]) -> Deferred[Any]:
        return self.shared.run(function, self.reactor)

    def hang(self) -> str:
        assert self.gate.wait(THREAD_TIMEOUT_S)
        return "through"

    def threads(self) -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith(f"{self.id()}-")]

    def test_result_or_failure_is_told(self) -> None:
        self.assertEqual(self.threads(), [])
        results = [
            self.run_one(lambda: threading.current_thread().name),
            self.run_one(lambda: {}["a"]),
        ]
        self.reactor.until(lambda: all(result.called for result in results))
        self.assertIn(self.id(), self.successResultOf(results[0]))
        self.failureResultOf(results[1], KeyError)

    def test_so_many_wait_and_further_ones_are_refused(self) -> None:
        results = [self.run_one(self.hang) for _ in range(3)]
        refused = self.failureResultOf(self.run_one(self.hang), RefusedRequest)
        self.assertEqual(refused.value.status, 503)  # type: ignore[attr-defined]
        self.assertEqual(len(self.threads()), 2)
        self.gate.set()
        self.reactor.until(lambda: all(result.called for result in results))
        self.assertEqual([self.successResultOf(result) for result in results], ["through"] * 3)

    def test_other_threads_are_not_concerned_by_those_that_hang(self) -> None:
        for _ in range(3):
            self.run_one(self.hang).addErrback(lambda _: None)
        other = SharedThreads(f"other.{self.id()}", 1).run(lambda: 1, self.reactor)
        self.reactor.until(lambda: other.called)
        self.assertEqual(self.successResultOf(other), 1)

    def test_what_is_given_up_while_it_waits_is_not_called(self) -> None:
        called: list[int] = []
        first, second = self.run_one(self.hang), self.run_one(self.hang)
        given_up = self.run_one(lambda: called.append(1))
        given_up.addErrback(lambda failure: failure.type.__name__)
        given_up.cancel()
        self.assertEqual(self.successResultOf(given_up), "CancelledError")
        self.gate.set()
        self.reactor.until(lambda: first.called and second.called)
        last = self.run_one(lambda: called)
        self.reactor.until(lambda: last.called)
        self.assertEqual(self.successResultOf(last), [])

    def test_what_is_given_up_later_ends_unheard(self) -> None:
        started = threading.Event()

        def start() -> None:
            started.set()
            self.hang()

        result = self.run_one(start)
        self.assertTrue(started.wait(THREAD_TIMEOUT_S))
        result.addErrback(lambda failure: failure.type.__name__)
        result.cancel()
        self.gate.set()
        after = self.run_one(int)
        self.reactor.until(lambda: after.called)
        self.assertEqual(self.successResultOf(result), "CancelledError")

    def test_threads_end_with_the_reactor(self) -> None:
        result = self.run_one(int)
        self.reactor.until(lambda: result.called)
        threads = self.threads()
        self.reactor.end()
        for thread in threads:
            thread.join(THREAD_TIMEOUT_S)
        self.assertEqual(self.threads(), [])

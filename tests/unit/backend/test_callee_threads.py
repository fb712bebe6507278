"""Plain functions run in real threads; time, and what threads tell the reactor, is the test's."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import BrokerUnavailable, InvalidArguments, LocalProtocolError
from pelotontx.net.threads import ThreadPool
from tests.unit.backend.callee_case import (
    THREAD_TIMEOUT_S,
    CalleeCase,
    RecordingSource,
    ThreadedClock,
    call,
)


class Gate:
    """Holds up the threads that pass it until it is opened; knows who has come."""

    def __init__(self) -> None:
        self.arrived: SimpleQueue[Any] = SimpleQueue()
        self._open = threading.Event()

    def wait(self, who: Any = None) -> Any:
        self.arrived.put(who)
        assert self._open.wait(THREAD_TIMEOUT_S)
        return who

    def next(self) -> Any:
        """Waits for somebody to come."""
        return self.arrived.get(timeout=THREAD_TIMEOUT_S)

    def open(self) -> None:
        self._open.set()


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


class ThreadPoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ThreadedClock()
        self.gate = Gate()
        self.addCleanup(self.gate.open)
        self.told: list[tuple[Any, BaseException | None]] = []
        self.pool = ThreadPool(self.clock, 3, name=self.id())  # type: ignore[arg-type]
        self.addCleanup(self.pool.stop)

    def run_all(self, *functions: Callable[[], Any]) -> None:
        for number, function in enumerate(functions):
            self.pool.run(str(number), function, lambda *outcome: self.told.append(outcome))

    def test_threads_are_started_one_by_one_and_no_more_than_the_size(self) -> None:
        self.assertEqual(threads(self.id()), [])
        self.run_all(int)
        self.clock.until(lambda: self.told)
        self.run_all(int)
        self.clock.until(lambda: len(self.told) == 2)
        self.assertEqual(len(threads(self.id())), 1)
        self.run_all(*[self.gate.wait] * 5)
        self.assertEqual([self.gate.next() for _ in range(3)], [None] * 3)
        self.assertEqual(len(threads(self.id())), 3)
        self.assertTrue(all(thread.daemon for thread in threads(self.id())))
        self.assertEqual((self.pool.unfinished, self.pool.queued), (5, 2))

    def test_whatever_is_raised_is_told_and_the_thread_goes_on(self) -> None:
        def raises(kind: type[BaseException]) -> Callable[[], None]:
            def function() -> None:
                raise kind("no")

            return function

        kinds = (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration)
        self.run_all(*map(raises, kinds), lambda: "done")
        self.clock.until(lambda: len(self.told) == 6)
        told = [result if error is None else type(error) for result, error in self.told]
        self.assertEqual(set(told), {*kinds, "done"})
        self.assertEqual(self.pool.unfinished, 0)

    def test_who_fails_when_it_is_told_harms_no_other(self) -> None:
        def fail(*_: object) -> None:
            raise ValueError("mine")

        self.pool = ThreadPool(self.clock, 1, name=self.id())  # type: ignore[arg-type]
        self.addCleanup(self.pool.stop)
        done = threading.Event()
        self.pool.run("0", int, fail)
        self.run_all(int, done.set)
        self.assertTrue(done.wait(THREAD_TIMEOUT_S))
        self.clock.until(lambda: len(self.told) == 2)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_ends_while_the_reactor_is_busy_wakes_it_once(self) -> None:
        self.pool = ThreadPool(self.clock, 1, name=self.id())  # type: ignore[arg-type]
        done = threading.Event()
        self.run_all(*[int] * 50, done.set)
        self.assertTrue(done.wait(THREAD_TIMEOUT_S))
        self.pool.stop()
        for thread in threads(self.id()):
            thread.join(THREAD_TIMEOUT_S)
        self.assertEqual(self.clock.wakeups.qsize(), 1)

    def test_room_is_what_finds_a_free_thread_soon(self) -> None:
        self.assertEqual(self.pool.room(0.002), 3)  # nothing is known yet
        self.pool.mean_run_s = 0.004
        self.assertEqual(self.pool.room(0.002), 4)
        self.pool.mean_run_s = 0.00001
        self.assertEqual(self.pool.room(0.002), 6)  # one that waits for each thread
        self.run_all(*[self.gate.wait] * 4)
        self.assertEqual(self.pool.room(0.002), 2)
        self.pool.mean_run_s = 1.0
        self.assertEqual(self.pool.room(0.002), -1)

    def test_the_run_time_that_this_is_judged_by_follows_the_last_ones(self) -> None:
        self.run_all(*[int] * 100)
        self.clock.until(lambda: len(self.told) == 100)
        self.assertLess(self.pool.mean_run_s, 0.1)

    def test_stop_forgets_what_waits_names_what_runs_and_ends_the_others(self) -> None:
        self.run_all(self.gate.wait, self.gate.wait)
        for _ in range(2):
            self.gate.next()
        self.run_all(int)
        self.clock.until(lambda: self.told)
        running, idle = threads(self.id())[:2], threads(self.id())[2]
        self.assertEqual(self.pool.stop(), ["0", "1"])
        self.assertEqual(self.pool.unfinished, 0)
        idle.join(THREAD_TIMEOUT_S)
        self.gate.open()
        for thread in running:
            thread.join(THREAD_TIMEOUT_S)
        self.assertEqual((threads(self.id()), self.told), ([], [(0, None)]))
        self.assertTrue(self.clock.wakeups.empty())

    def test_a_machine_without_threads_is_an_error_that_is_told(self) -> None:
        pool = Threadless(self.clock, 3, name=self.id())  # type: ignore[arg-type]
        pool.run("a", int, lambda *outcome: self.told.append(outcome))
        self.assertIsInstance(self.told[0][1], RuntimeError)
        self.assertEqual((pool.unfinished, pool.queued), (0, 0))


class Threadless(ThreadPool[str]):
    """A pool on a machine that can start no thread."""

    def _start_thread(self) -> None:
        raise RuntimeError("can't start new thread")


class ThreadedFunctionTests(CalleeCase):
    def setUp(self) -> None:
        super().setUp()
        self.gate = Gate()
        self.addCleanup(self.gate.open)

        @self.callee.function("name")
        def name(args: Any) -> str:
            return threading.current_thread().name

        @self.callee.function("slow")
        def slow(args: Any) -> Any:
            return self.gate.wait(args)

    def results(self, count: int) -> list[tuple[str, Any]]:
        """The results, when there are so many."""
        self.clock.until(lambda: len(self.source.results) >= count)
        return self.source.results

    def test_a_plain_function_runs_in_a_thread_and_its_result_is_stored(self) -> None:
        service = self.start()
        self.source.give(call("name"))
        [(_, name)] = self.results(1)
        self.assertRegex(name, r"^callee-\d$")
        self.assertEqual((service.calls_run, service.calls_running), (1, 0))

    def test_a_slow_one_keeps_nobody_waiting(self) -> None:
        @self.callee.function("inline", inline=True)
        def inline(args: Any) -> str:
            return threading.current_thread().name

        service = self.start()
        here, threaded = self.sources
        threaded.give(call("slow"))
        self.gate.next()
        here.give(call("inline", "i"))
        self.assertEqual(here.results, [("i", threading.current_thread().name)])
        threaded.give(call("name", "n"))
        self.clock.until(lambda: threaded.results)
        self.assertEqual(service.calls_running, 1)

    def test_threads_that_never_end_are_in_the_warning(self) -> None:
        self.start(threads=2, stop_timeout_s=0)
        self.source.give(call("slow", "a"), call("slow", "b", expires_at_s=999))
        for _ in range(2):
            self.gate.next()
        with capturedLogs() as events:
            self.clock.advance(30)
        (warning,) = map(formatEvent, events)
        self.assertIn("every place is in use, 1 of them by functions that run on", warning)

    def test_each_kind_has_a_loop_of_its_own_and_room_of_its_own(self) -> None:
        @self.callee.function("waits")
        async def waits(args: Any) -> None:
            await Deferred()

        self.start(concurrency=5, threads=2)
        here, threaded = self.sources
        self.assertEqual((set(here.uris), set(threaded.uris)), ({"waits"}, {"name", "slow"}))
        self.assertEqual((here.limits, threaded.limits), ([5], [2]))
        threaded.give(call("slow", "a"), call("slow", "b"))
        self.assertEqual((here.limits, threaded.limits), ([5], [2]))  # no thread is free
        here.give(call("waits"))
        self.assertEqual((here.limits, threaded.limits), ([5, 4], [2]))
        self.gate.open()
        self.clock.until(lambda: len(threaded.results) == 2)
        # Asked for again once: when one thread was free, or both.
        self.assertIn(threaded.limits, ([2, 1], [2, 2]))

    def test_no_more_than_concurrency_are_taken_however_many_threads_there_are(self) -> None:
        self.start(concurrency=1, threads=8)
        self.assertEqual(self.source.limits, [1])
        self.source.give(call("slow"))
        self.assertEqual(self.source.limits, [1])

    def test_a_failure_is_told_and_logged(self) -> None:
        @self.callee.function("raises")
        def raises(args: Any) -> None:
            raise SystemExit("enough")

        @self.callee.function("odd")
        def odd(args: Any) -> Any:
            return object()

        @self.callee.function("refuses")
        def refuses(args: Any) -> None:
            raise InvalidArguments("not that one")

        service = self.start()
        self.source.give(call("raises", "a"), call("odd", "b"), call("refuses", "c"))
        answers = {name: result["error"]["message"] for name, result in self.results(3)}
        self.assertEqual((answers["a"], answers["c"]), ("enough", "not that one"))
        self.assertIn("object", answers["b"])
        self.assertEqual((service.calls_failed, service.calls_invalid), (2, 1))
        self.assertEqual(len(self.flushLoggedErrors(SystemExit, TypeError)), 2)

    def test_wrong_args_cost_no_thread_and_no_log(self) -> None:
        @self.callee.function("typed")
        def typed(args: int) -> int:
            return args

        service = self.start()
        self.source.give(call("typed", "a", b'"1"'))
        error = {"message": "typed: args: expected int, got str", "code": 400}
        self.assertEqual(self.source.results, [("a", {"error": error})])
        self.assertEqual((service.calls_invalid, service.calls_failed), (1, 0))
        self.assertEqual((service.calls_run, service.calls_running), (0, 0))

    def test_a_call_whose_time_is_over_before_a_thread_is_free_is_not_run(self) -> None:
        service = self.start(threads=1)
        self.source.give(call("slow", "a"), call("slow", "b", expires_at_s=2))
        self.gate.next()
        self.clock.advance(3)
        self.assertEqual(service.calls_queued, 1)
        self.gate.open()
        self.clock.until(lambda: service.calls_expired)
        self.assertEqual(self.source.results, [("a", 1)])
        self.assertTrue(self.gate.arrived.empty())
        self.assertEqual((service.calls_run, service.calls_expired), (1, 1))

    def test_a_result_that_comes_too_late_is_not_stored(self) -> None:
        service = self.start()
        self.source.give(call("slow", expires_at_s=2))
        self.gate.next()
        self.clock.advance(3)
        self.gate.open()
        self.clock.until(lambda: service.calls_expired)
        self.assertEqual((self.source.results, service.calls_run), ([], 1))

    def test_a_coroutine_from_a_thread_runs_in_the_reactor(self) -> None:
        async def coroutine() -> str:
            return threading.current_thread().name

        self.callee.function("gives")(lambda args: coroutine())
        self.start()
        self.source.give(call("gives"))
        self.assertEqual(self.results(1), [("m", threading.current_thread().name)])

    def test_a_deferred_from_a_thread_is_an_error_that_says_what_to_do(self) -> None:
        self.callee.function("gives")(lambda args: Deferred())
        self.start()
        self.source.give(call("gives"))
        [(_, result)] = self.results(1)
        self.assertIn("register it with inline=True", result["error"]["message"])
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_stop_waits_for_threads_and_stores_what_they_give(self) -> None:
        service = self.start(threads=1)
        self.source.give(call("slow", "a"), call("slow", "b"))
        self.gate.next()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.gate.open()
        self.results(2)
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.source.results, [("a", 1), ("b", 1)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_leaves_threads_behind_that_do_not_end_in_time(self) -> None:
        service = self.start(threads=1, stop_timeout_s=5)
        self.source.give(call("slow", "a", expires_at_s=60), call("name", "b", expires_at_s=60))
        self.gate.next()
        stopped = service.stopService()
        with capturedLogs() as logged:
            self.clock.advance(5)
            self.clock.advance(0)
        self.successResultOf(stopped)
        [line] = map(formatEvent, logged)
        self.assertEqual(line, "Stopped while slow ran; calls that waited for a thread, not run: 1")
        self.assertTrue(self.source.stopped)
        self.gate.open()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.source.results, [])

    def test_both_loops_stop_and_both_sides_are_let_go(self) -> None:
        self.callee.function("inline", inline=True)(lambda args: args)
        service = self.start()
        self.assertTrue(service.is_taking)
        self.successResultOf(service.stopService())
        self.assertEqual([source.stopped for source in self.sources], [True, True])
        self.assertFalse(service.is_taking)

    def test_a_result_from_a_thread_is_stored_again_through_the_side_it_came_from(self) -> None:
        self.callee.function("inline", inline=True)(lambda args: args)
        self.start()
        threaded: RecordingSource = self.sources[1]
        threaded.refuses = BrokerUnavailable("down")
        threaded.give(call("name"))
        self.clock.until(lambda: threaded.attempts)
        threaded.refuses = None
        self.clock.advance(0.1)
        self.assertEqual((len(threaded.results), self.source.results), (1, []))

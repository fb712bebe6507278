"""Waiting, together, streams and cells, by a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError, StreamClosed, TimedOut
from pelotontx.flow import Cell, Stream, Tasks, from_callback, later, timeout, together


class LaterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_fires_after_the_delay(self) -> None:
        waiting = later(self.clock, 1.5)
        self.clock.advance(1)
        self.assertNoResult(waiting)
        self.clock.advance(1)
        self.successResultOf(waiting)

    def test_says_hi_after_one_second(self) -> None:
        said: list[str] = []
        later(self.clock, 1.0, said.append, "hi")
        self.clock.advance(0.9)
        self.assertEqual(said, [])
        self.clock.advance(0.1)
        self.assertEqual(said, ["hi"])

    def test_fires_with_what_a_function_or_a_coroutine_function_returns(self) -> None:
        async def twice(number: int, *, plus: int) -> int:
            await later(self.clock, 1)
            return 2 * number + plus

        plain, waiting = later(self.clock, 1, max, 3, 4), later(self.clock, 1, twice, 3, plus=1)
        self.clock.pump([1, 1])
        self.assertEqual((self.successResultOf(plain), self.successResultOf(waiting)), (4, 7))

    def test_what_the_function_raises_is_the_failure(self) -> None:
        waiting = later(self.clock, 1, int, "x")
        self.clock.advance(1)
        self.failureResultOf(waiting, ValueError)

    def test_cancelling_leaves_nothing_in_the_reactor(self) -> None:
        said: list[str] = []
        waiting = later(self.clock, 1, said.append, "hi")
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((self.clock.getDelayedCalls(), said), ([], []))

    def test_cancelling_reaches_the_function_that_runs(self) -> None:
        inner: Deferred[None] = Deferred()
        waiting = later(self.clock, 1, lambda: inner)
        self.clock.advance(1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(inner.called)


class TimeoutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_a_result_in_time_is_passed_on(self) -> None:
        waiting = timeout(self.clock, 2, later(self.clock, 1, lambda: "done"))
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(waiting), "done")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_past_it_a_deferred_or_a_coroutine_is_cancelled(self) -> None:
        ended: list[str] = []

        async def waits() -> None:
            try:
                await Deferred()
            finally:
                ended.append("coroutine")

        for awaitable in (waits(), Deferred(lambda _: ended.append("deferred"))):
            waiting = timeout(self.clock, 2.5, awaitable)
            self.clock.advance(2.5)
            error = self.failureResultOf(waiting, TimedOut, TimeoutError).value
            self.assertEqual((error.timeout_s, str(error)), (2.5, "not done within 2.5 s"))
        self.assertEqual(ended, ["coroutine", "deferred"])

    def test_it_waits_for_the_clean_up_of_what_it_cancelled(self) -> None:
        gate: Deferred[None] = Deferred()

        async def cleans_up() -> None:
            try:
                await Deferred()
            finally:
                await gate

        waiting = timeout(self.clock, 1, cleans_up())
        self.clock.advance(1)
        self.assertNoResult(waiting)
        gate.callback(None)
        self.failureResultOf(waiting, TimedOut)

    def test_an_error_that_follows_the_cancellation_is_the_cause(self) -> None:
        async def wraps() -> None:
            try:
                await Deferred()
            except CancelledError as error:
                raise ConnectionError("cut") from error

        waiting = timeout(self.clock, 1, wraps())
        self.clock.advance(1)
        error = self.failureResultOf(waiting, TimedOut).value
        self.assertIsInstance(error.__cause__, ConnectionError)

    def test_a_result_in_spite_of_the_cancellation_counts(self) -> None:
        waiting = timeout(self.clock, 1, Deferred(lambda inner: inner.callback("saved")))
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(waiting), "saved")

    def test_a_failure_and_a_cancellation_stay_what_they_are(self) -> None:
        self.failureResultOf(timeout(self.clock, 1, fail(ZeroDivisionError())), ZeroDivisionError)
        waiting = timeout(self.clock, 1, Deferred())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_other_awaitables_may_be_waited_for(self) -> None:
        class Other:
            def __await__(self) -> Any:
                return succeed(3).__await__()

        self.assertEqual(self.successResultOf(timeout(self.clock, 1, Other())), 3)


class FromCallbackTests(SynchronousTestCase):
    def test_fires_with_what_the_callback_is_given(self) -> None:
        callbacks: list[Callable[..., None]] = []

        def query(name: str, callback: Callable[..., None], *, limit: int) -> None:
            self.assertEqual((name, limit), ("x", 2))
            callbacks.append(callback)

        for values, result in (((), None), ((1,), 1), ((1, 2), (1, 2))):
            waiting = from_callback(query, "x", limit=2)
            self.assertNoResult(waiting)
            callbacks.pop()(*values)
            self.assertEqual(self.successResultOf(waiting), result)

    def test_it_fires_once_and_late_binders_are_called_at_once(self) -> None:
        callbacks: list[Callable[..., None]] = []
        waiting = from_callback(callbacks.append)
        callbacks[0](1)
        callbacks[0](2)
        bound: list[int] = []
        waiting.addCallback(lambda value: bound.append(value) or value)
        self.assertEqual(bound, [1])
        self.assertEqual(self.successResultOf(waiting), 1)

    def test_a_callback_after_the_cancellation_is_ignored(self) -> None:
        callbacks: list[Callable[..., None]] = []
        waiting = from_callback(callbacks.append)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        callbacks[0](1)

    def test_what_the_function_raises_is_the_failure(self) -> None:
        self.failureResultOf(from_callback(int, "x"), TypeError)

        def calls_and_raises(callback: Callable[..., None]) -> None:
            callback(1)
            raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, from_callback, calls_and_raises)


class TogetherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_two_loads_take_as_long_as_the_longer_one(self) -> None:
        printed: list[int] = []

        def load_a() -> Deferred[int]:
            return later(self.clock, 1.0, lambda: 1)

        async def load_b() -> int:
            await later(self.clock, 2.0)
            return 2

        async def program() -> None:
            a, b = await together(load_a(), load_b())
            printed.append(a + b)

        running = Deferred.fromCoroutine(program())
        self.clock.pump([1, 0.9])
        self.assertEqual(printed, [])
        self.clock.advance(0.1)
        self.successResultOf(running)
        self.assertEqual(printed, [3])

    def test_names_deferreds_coroutines_and_plain_values_mix(self) -> None:
        async def two() -> int:
            return 2

        bound = self.successResultOf(together(a=succeed(1), b=two(), c=3))
        self.assertEqual((bound.a, bound.b, bound.c), (1, 2, 3))
        self.assertEqual(self.successResultOf(together(None, succeed(1))), (None, 1))
        self.assertEqual(self.successResultOf(together()), ())

    def test_a_deferred_that_others_wait_for_keeps_its_result(self) -> None:
        shared: Deferred[int] = Deferred()
        waiting = together(shared, shared)
        shared.callback(5)
        self.assertEqual(self.successResultOf(waiting), (5, 5))
        self.assertEqual(self.successResultOf(shared), 5)

    def test_a_mixture_of_named_and_unnamed_is_refused(self) -> None:
        self.assertRaises(TypeError, together, 1, b=2)

    def test_the_first_failure_cancels_the_rest_and_is_raised_as_itself(self) -> None:
        ended: list[str] = []

        async def waits() -> None:
            try:
                await Deferred()
            finally:
                ended.append("coroutine")

        first: Deferred[None] = Deferred()
        running = together(waits(), first, Deferred(lambda _: ended.append("deferred")), 1)
        first.errback(ZeroDivisionError())
        self.failureResultOf(running, ZeroDivisionError)
        self.assertEqual(ended, ["coroutine", "deferred"])

    def test_a_failure_at_once_cancels_what_comes_later(self) -> None:
        ended: list[bool] = []
        running = together(fail(ZeroDivisionError()), Deferred(lambda _: ended.append(True)))
        self.failureResultOf(running, ZeroDivisionError)
        self.assertEqual(ended, [True])

    def test_a_further_failure_is_logged(self) -> None:
        async def cleans_up_badly() -> None:
            try:
                await Deferred()
            finally:
                int("x")

        first: Deferred[None] = Deferred()
        running = together(first, cleans_up_badly())
        first.errback(ZeroDivisionError())
        self.failureResultOf(running, ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_cancelling_cancels_all_and_waits_for_their_end(self) -> None:
        gate, ended = Deferred[None](), []

        async def holds_on() -> None:
            try:
                await Deferred()
            except CancelledError:
                await gate  # and ends as if nothing had been
                ended.append(True)

        other: Deferred[None] = Deferred()
        running = together(holds_on(), other)
        running.cancel()
        self.assertTrue(other.called)
        self.assertNoResult(running)
        gate.callback(None)
        self.failureResultOf(running, CancelledError)
        self.assertEqual(ended, [True])


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stream: Stream[int] = Stream(2)
        self.read: list[int] = []

    def put(self, item: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self.stream.put(item))

    def reading(self) -> Deferred[None]:
        async def read() -> None:
            async for item in self.stream:
                self.read.append(item)

        return Deferred.fromCoroutine(read())

    def test_items_are_kept_until_somebody_reads(self) -> None:
        self.successResultOf(self.put(1))
        self.assertEqual(len(self.stream), 1)
        reading = self.reading()
        self.successResultOf(self.put(2))
        self.assertEqual(self.read, [1, 2])
        self.assertNoResult(reading)
        self.stream.close()
        self.successResultOf(reading)

    def test_what_was_put_before_the_close_is_read_after_it(self) -> None:
        self.successResultOf(self.put(1))
        self.stream.close()
        self.stream.close(ZeroDivisionError())
        self.successResultOf(self.reading())
        self.assertEqual(self.read, [1])
        self.failureResultOf(self.put(2), StreamClosed)
        self.assertRaises(StreamClosed, self.stream.offer, 2)

    def test_an_error_comes_after_what_was_put(self) -> None:
        self.successResultOf(self.put(1))
        self.stream.close(ZeroDivisionError())
        self.failureResultOf(self.reading(), ZeroDivisionError)
        self.assertEqual(self.read, [1])

    def test_a_full_stream_takes_nothing_until_there_is_room(self) -> None:
        self.assertEqual([self.stream.offer(item) for item in (1, 2, 3)], [True, True, False])
        waiting = [self.put(item) for item in (4, 5, 6)]
        for put in waiting:
            self.assertNoResult(put)
        self.stream.offer(7)
        reading = self.reading()
        for put in waiting:
            self.successResultOf(put)
        self.assertEqual(self.read, [1, 2, 4, 5, 6])
        self.stream.close()
        self.successResultOf(reading)

    def test_a_cancelled_put_has_put_nothing(self) -> None:
        self.stream.offer(1)
        self.stream.offer(2)
        third, fourth = self.put(3), self.put(4)
        third.cancel()
        self.failureResultOf(third, CancelledError)
        reading = self.reading()
        self.successResultOf(fourth)
        self.assertEqual(self.read, [1, 2, 4])
        self.stream.close()
        self.successResultOf(reading)

    def test_a_cancelled_reader_has_taken_nothing(self) -> None:
        first, second = self.reading(), self.reading()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.successResultOf(self.put(1))
        self.assertEqual(self.read, [1])
        self.stream.close()
        self.successResultOf(second)

    def test_each_item_goes_to_one_reader(self) -> None:
        nexts = [Deferred.fromCoroutine(self.stream.__anext__()) for _ in range(2)]
        self.stream.offer(1)
        self.stream.offer(2)
        self.assertEqual([self.successResultOf(item) for item in nexts], [1, 2])

    def test_closing_ends_those_who_wait_for_room(self) -> None:
        self.stream.offer(1)
        self.stream.offer(2)
        waiting = [self.put(3), self.put(4)]
        self.stream.close()
        for put in waiting:
            self.failureResultOf(put, StreamClosed)

    def test_a_long_stream_does_not_nest(self) -> None:
        async def writes() -> None:
            for item in range(5000):
                await self.stream.put(item)
            self.stream.close()

        writing, reading = Deferred.fromCoroutine(writes()), self.reading()
        self.successResultOf(writing)
        self.successResultOf(reading)
        self.assertEqual(self.read, list(range(5000)))

    def test_a_stream_without_room_is_refused(self) -> None:
        self.assertRaises(ValueError, Stream, 0)


class CellTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cell = Cell(1)
        self.seen: list[int] = []

    def test_a_late_observer_is_called_at_once_and_at_each_set(self) -> None:
        self.cell.set(2)
        self.cell.observe(self.seen.append)
        self.cell.set(3)
        self.cell.set(3)
        self.assertEqual((self.seen, self.cell.get()), ([2, 3, 3], 3))

    def test_a_stopped_observer_is_not_told(self) -> None:
        first, second = self.cell.observe(self.seen.append), self.cell.observe(self.seen.append)
        first.stop()
        first.stop()
        self.cell.set(2)
        second.stop()
        self.cell.set(3)
        self.assertEqual(self.seen, [1, 1, 2])

    def test_an_observer_stopped_by_another_is_not_told(self) -> None:
        self.cell.observe(lambda value: value > 1 and watching.stop())
        watching = self.cell.observe(self.seen.append)
        self.cell.set(2)
        self.assertEqual(self.seen, [1])

    def test_an_error_is_logged_and_the_others_are_told(self) -> None:
        self.cell.observe(lambda value: 1 // (2 - value))
        self.cell.observe(self.seen.append)
        self.cell.set(2)
        self.assertEqual(self.seen, [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_set_by_an_observer_comes_last(self) -> None:
        self.cell.observe(lambda value: self.cell.set(value + 1) if value % 2 == 0 else None)
        self.cell.observe(self.seen.append)
        self.cell.set(4)
        self.assertEqual((self.seen, self.cell.get()), ([1, 5], 5))


class TasksTests(SynchronousTestCase):
    def test_a_failure_is_logged_and_the_others_go_on(self) -> None:
        tasks, gate, done = Tasks(), Deferred[None](), []

        async def fails() -> None:
            raise ZeroDivisionError

        async def waits() -> None:
            await gate
            done.append(True)

        tasks.spawn(waits())
        tasks.spawn(fails())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(tasks), 1)
        gate.callback(None)
        self.assertEqual((done, len(tasks)), ([True], 0))

    def test_stop_cancels_all_and_waits_for_their_end(self) -> None:
        tasks, gate, ended = Tasks(), Deferred[None](), []

        async def cleans_up() -> None:
            try:
                await Deferred()
            finally:
                await gate
                ended.append(True)

        tasks.spawn(cleans_up())
        stopped = tasks.stop()
        self.assertNoResult(stopped)
        gate.callback(None)
        self.successResultOf(stopped)
        self.assertEqual((ended, len(tasks)), ([True], 0))
        self.successResultOf(tasks.stop())

    def test_task_that_is_spawned_while_they_stop_is_cancelled_and_waited_for(self) -> None:
        tasks, gate, seen = Tasks(), Deferred[None](), []

        async def late() -> None:
            try:
                await Deferred()
            finally:
                seen.append("cancelled")
                await gate
                seen.append("ended")

        async def cleans_up() -> None:
            try:
                await Deferred()
            finally:
                tasks.spawn(late())

        tasks.spawn(cleans_up())
        stopped = tasks.stop()
        self.assertEqual(seen, ["cancelled"])
        self.assertNoResult(stopped)
        gate.callback(None)
        self.successResultOf(stopped)
        self.assertEqual((seen, len(tasks)), (["cancelled", "ended"], 0))

    def test_two_stops_wait_for_the_same_end_and_tasks_may_follow(self) -> None:
        tasks, gate, done = Tasks(), Deferred[None](), []

        async def cleans_up() -> None:
            try:
                await Deferred()
            finally:
                await gate

        async def follows() -> None:
            await succeed(None)
            done.append(True)

        tasks.spawn(cleans_up())
        stops = [tasks.stop(), tasks.stop()]
        gate.errback(ZeroDivisionError())
        self.assertEqual([self.successResultOf(stopped) for stopped in stops], [None, None])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        tasks.spawn(follows())
        self.assertEqual(done, [True])

    def test_task_that_would_wait_for_its_own_end_is_told(self) -> None:
        async def stops(tasks: Tasks, gate: Deferred[None]) -> None:
            await gate
            await tasks.stop()

        async def has_another_stop(tasks: Tasks, gate: Deferred[None]) -> None:
            await Deferred.fromCoroutine(stops(tasks, gate))

        for task in (stops, has_another_stop):
            tasks, gate = Tasks(), Deferred[None]()
            tasks.spawn(task(tasks, gate))
            gate.callback(None)
            self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)
            self.assertEqual(len(tasks), 0)

    def test_what_a_task_has_started_may_stop_the_others_after_its_end(self) -> None:
        tasks, gate, seen = Tasks(), Deferred[None](), []

        async def stops() -> None:
            await gate
            await tasks.stop()
            seen.append("stopped")

        async def starts() -> None:
            Deferred.fromCoroutine(stops())

        async def waits() -> None:
            await Deferred(lambda _: seen.append("cancelled"))

        tasks.spawn(starts())
        tasks.spawn(waits())
        gate.callback(None)
        self.assertEqual(seen, ["cancelled", "stopped"])

    def test_task_may_stop_those_of_another_service(self) -> None:
        tasks, others, cancelled = Tasks(), Tasks(), []

        async def waits() -> None:
            await Deferred(lambda _: cancelled.append(True))

        async def stops() -> None:
            await others.stop()

        others.spawn(waits())
        tasks.spawn(stops())
        self.assertEqual((cancelled, len(tasks), len(others)), ([True], 0, 0))

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.flow import Tasks, later


class LaterTests(SynchronousTestCase):
    def test_fires_after_the_delay(self) -> None:
        clock = Clock()
        waiting = later(clock, 1.5)
        clock.advance(1)
        self.assertNoResult(waiting)
        clock.advance(1)
        self.successResultOf(waiting)

    def test_cancelling_leaves_nothing_in_the_reactor(self) -> None:
        clock = Clock()
        waiting = later(clock, 1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(clock.getDelayedCalls(), [])


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

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.wheel import Wheel


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.03)
        self.wheel = Wheel(self.clock, tick_s=0.1)
        self.fired: list[object] = []

    def test_fires_never_early_and_at_most_a_tick_late(self) -> None:
        for n in range(50):
            self.wheel.call_later(n * 0.037, self.fired.append, n)
        due = {n: 1000.03 + n * 0.037 for n in range(50)}
        seen = 0
        for _ in range(300):
            self.clock.advance(0.01)
            for n in self.fired[seen:]:
                assert isinstance(n, int)
                self.assertGreaterEqual(self.clock.seconds(), due[n])
                self.assertLessEqual(self.clock.seconds(), due[n] + 0.12)
            seen = len(self.fired)
        self.assertEqual(sorted(self.fired), list(range(50)))  # type: ignore[type-var]

    def test_cancelled_timer_does_not_fire(self) -> None:
        self.wheel.call_later(1, self.fired.append, "x").cancel()
        self.clock.advance(2)
        self.assertEqual(self.fired, [])

    def test_cancelled_timers_are_forgotten_at_once(self) -> None:
        kept = self.wheel.call_later(60, self.fired.append, "kept")
        for _ in range(1000):
            self.wheel.call_later(60, self.fired.append, "x").cancel()
        self.assertEqual(len(self.wheel), 1)
        kept.cancel()
        kept.cancel()
        self.assertEqual(len(self.wheel), 0)

    def test_a_timer_may_cancel_another_of_its_tick(self) -> None:
        self.wheel.call_later(1, lambda: second.cancel())
        second = self.wheel.call_later(1, self.fired.append, "second")
        third = self.wheel.call_later(1, lambda: third.cancel())
        self.clock.advance(2)
        self.assertEqual(self.fired, [])

    def test_an_earlier_timer_moves_the_wakeup_forward(self) -> None:
        self.wheel.call_later(60, self.fired.append, "late")
        self.wheel.call_later(1, self.fired.append, "soon")
        self.clock.advance(1.2)
        self.assertEqual(self.fired, ["soon"])

    def test_a_timer_that_begins_a_later_one_does_not_put_off_the_next(self) -> None:
        self.wheel.call_later(1, self.wheel.call_later, 60, self.fired.append, "late")
        self.wheel.call_later(2, self.fired.append, "soon")
        self.clock.pump([0.1] * 22)
        self.assertEqual(self.fired, ["soon"])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_one_delayed_call_serves_all_and_none_is_left_when_idle(self) -> None:
        for n in range(1000):
            self.wheel.call_later(n / 100, self.fired.append, n)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([0.1] * 120)
        self.assertEqual(len(self.fired), 1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_failing_timer_does_not_stop_the_others(self) -> None:
        self.wheel.call_later(1, lambda: 1 / 0)
        self.wheel.call_later(1, self.fired.append, "y")
        self.clock.advance(2)
        self.assertEqual(self.fired, ["y"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop_leaves_nothing(self) -> None:
        self.wheel.call_later(1, self.fired.append, "x")
        self.wheel.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

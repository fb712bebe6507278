from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.errors import BrokerUnavailable

FIELDS = {"a": b"[1]"}


class MemorySessionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemorySessions(self.clock, limit=3)

    def begin(self, session_id: str, life_ms: int = 1000) -> None:
        self.successResultOf(self.store.save(session_id, FIELDS, life_ms=life_ms, is_new=True))

    def load(self, session_id: str) -> dict[str, bytes] | None:
        return self.successResultOf(self.store.load(session_id, life_ms=1, slack_ms=0))

    def test_what_is_over_is_not_found_even_before_it_is_swept(self) -> None:
        self.begin("s")
        self.clock.advance(0.999)
        self.assertEqual(self.load("s"), FIELDS)
        self.clock.advance(0.001)
        self.assertIsNone(self.load("s"))

    def test_what_is_over_is_forgotten_and_nothing_stays_in_the_reactor(self) -> None:
        self.begin("s")
        self.begin("t", 100_000)
        self.clock.advance(60)
        self.assertEqual(len(self.store), 1)
        self.clock.advance(60)
        self.assertEqual(len(self.store), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_full_store_refuses_new_sessions_and_keeps_the_others(self) -> None:
        for session_id in "abc":
            self.begin(session_id)
        self.failureResultOf(
            self.store.save("d", FIELDS, life_ms=1000, is_new=True), BrokerUnavailable
        )
        self.assertTrue(self.successResultOf(self.store.save("a", {"b": b"[1]"}, life_ms=1000)))
        self.assertTrue(self.successResultOf(self.store.move("a", "d", {}, life_ms=1000)))
        self.assertEqual(self.load("d"), {"a": b"[1]", "b": b"[1]"})

    def test_looking_puts_its_end_off_when_that_gains_something(self) -> None:
        self.begin("s", 1000)
        self.successResultOf(self.store.load("s", life_ms=1500, slack_ms=600))
        self.clock.advance(0.9)
        self.successResultOf(self.store.load("s", life_ms=1500, slack_ms=600))
        self.clock.advance(1.4)
        self.assertEqual(self.load("s"), FIELDS)
        self.clock.advance(0.1)
        self.assertIsNone(self.load("s"))

    def test_looking_does_not_put_its_end_off_for_a_small_gain(self) -> None:
        self.begin("s", 1000)
        self.successResultOf(self.store.load("s", life_ms=1500, slack_ms=600))
        self.clock.advance(1)
        self.assertIsNone(self.load("s"))

    def test_what_was_loaded_is_a_copy(self) -> None:
        self.begin("s")
        loaded = self.load("s")
        assert loaded is not None
        loaded.clear()
        self.assertEqual(self.load("s"), FIELDS)

    def test_a_broker_that_stops_forgets_its_sessions(self) -> None:
        broker = MemoryBroker(self.clock)
        self.successResultOf(
            broker.sessions.save("s", FIELDS, life_ms=1000, is_new=True),
        )
        self.successResultOf(broker.stop())
        self.assertEqual(len(broker.sessions), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

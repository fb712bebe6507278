from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory import MemoryBroker
from pelotontx.errors import CallExpired, HistoryUnsupported
from tests.support.brokers import store_result


class MemoryBrokerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, call_cap=lambda uri: 2)
        self.broker.caller.start()
        self.errors: list[object] = []

    def store(self, msg_uuid: str, timeout_ms: int = 1000) -> None:
        self.broker.caller.store_call("u", msg_uuid, b"", timeout_ms, self.errors.append)

    def test_expired_calls_of_an_unserved_uri_do_not_hold_its_room(self) -> None:
        self.store("a", 10)
        self.store("b", 10)
        self.clock.advance(1)
        self.store("c")
        self.assertEqual(self.errors, [None, None, None])

    def test_expired_calls_of_unserved_uris_are_forgotten(self) -> None:
        for n in range(100):
            self.broker.caller.store_call(f"u{n}", "m", b"", 1000, self.errors.append)
        self.clock.pump([1] * 30)
        self.assertEqual(self.broker.waiting_calls, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_cancelled_taker_takes_nothing(self) -> None:
        callee = self.broker.callee()
        waiting = callee.take_calls(("u",), 5)
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.store("a")
        self.clock.advance(0)
        calls = self.successResultOf(callee.take_calls(("u",), 5))
        self.assertEqual([call.msg_uuid for call in calls], ["a"])

    def test_no_more_calls_are_taken_than_asked_for(self) -> None:
        self.store("a")
        self.store("b")
        calls = self.successResultOf(self.broker.callee().take_calls(("u",), 1))
        self.assertEqual([call.msg_uuid for call in calls], ["a"])

    def test_result_for_a_caller_that_is_gone_is_not_stored(self) -> None:
        self.store("a")
        callee = self.broker.callee()
        (call,) = self.successResultOf(callee.take_calls(("u",), 1))
        self.successResultOf(self.broker.caller.stop())
        told = self.successResultOf(store_result(callee, call, b"1"))
        self.assertIsInstance(told, CallExpired)

    def test_history_is_not_supported_and_says_so(self) -> None:
        self.failureResultOf(self.broker.pubsub.history("c", None, 1), HistoryUnsupported)

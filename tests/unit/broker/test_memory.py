import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory import MemoryBroker, glob_match
from pelotontx.errors import HistoryUnsupported


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("*", ["", "a", "a.b\n"], []),
        ("news.*", ["news.", "news.art"], ["news", "xnews.a"]),
        ("h?llo", ["hello", "hallo"], ["hllo", "heello"]),
        ("h[ae]llo", ["hello", "hallo"], ["hillo"]),
        ("h[^e]llo", ["hallo"], ["hello"]),
        ("h[a-c]llo", ["hbllo"], ["hdllo"]),
        ("h[c-a]llo", ["hbllo"], ["hdllo"]),
        (r"h\*llo", ["h*llo"], ["hello"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a**b", ["ab", "axyb"], ["a"]),
        ("[]]", [], ["]"]),
        (r"[\]x]", ["]", "x"], ["y"]),
        ("(a|b)+", ["(a|b)+"], ["a"]),
        ("[a", ["a"], ["b"]),
    ],
)
def test_globs_match_as_in_redis(glob: str, matching: list[str], other: list[str]) -> None:
    for name in matching:
        assert glob_match(glob, name), name
    for name in other:
        assert not glob_match(glob, name), name


def test_no_glob_takes_more_than_its_length_times_the_names() -> None:
    assert not glob_match("*a" * 20 + "*b", "a" * 250)


class MemoryBrokerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, call_cap=2)
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
        self.assertIs(self.successResultOf(callee.store_result(call, b"1")), False)

    def test_history_is_not_supported_and_says_so(self) -> None:
        self.failureResultOf(self.broker.pubsub.history("c", None, 1), HistoryUnsupported)

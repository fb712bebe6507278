import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import BrokerUnavailable, CallFailed, LocalProtocolError


class RecordingSource:
    """A broker's callee side that hands out calls when the test says so."""

    available = True

    def __init__(self) -> None:
        self.waiting: Deferred[list[IncomingCall]] | None = None
        self.limits: list[int] = []
        self.results: list[tuple[str, Any]] = []
        self.is_down = False
        self.stopped = False

    def start(self) -> None: ...

    def stop(self) -> Deferred[None]:
        self.stopped = True
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def take_calls(self, uris: Any, limit: int) -> Deferred[list[IncomingCall]]:
        self.limits.append(limit)
        if self.is_down:
            return fail(BrokerUnavailable("down"))
        self.waiting = Deferred()
        return self.waiting

    def give(self, *calls: IncomingCall) -> None:
        waiting, self.waiting = self.waiting, None
        assert waiting is not None
        waiting.callback(list(calls))

    def store_result(self, call: IncomingCall, args: bytes) -> Deferred[bool]:
        self.results.append((call.msg_uuid, json.loads(args)))
        stored: Deferred[bool] = Deferred()
        stored.callback(True)
        return stored


def call(uri: str, name: str = "m", args: bytes = b"1", expires_at_s: float = 10) -> IncomingCall:
    return IncomingCall(uri, "c", name, args, expires_at_s)


class CalleeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.source = RecordingSource()
        self.callee = Callee()
        self.gate: Deferred[str] = Deferred()

        @self.callee.function("plain")
        def plain(args: Any) -> Any:
            return [args]

        @self.callee.function("coroutine")
        async def coroutine(args: Any) -> Any:
            return await self.gate

        @self.callee.function("deferred")
        def deferred(args: Any) -> Deferred[str]:
            return self.gate

        @self.callee.function("raises")
        def raises(args: Any) -> None:
            raise ValueError("no good")

        @self.callee.function("says no")
        def says_no(args: Any) -> None:
            raise CallFailed({"message": "no", "code": 7})

        @self.callee.function("silent")
        def silent(args: Any) -> None:
            raise KeyError

    def start(self, **options: Any) -> CalleeService:
        service = CalleeService(self.callee, self.source, clock=self.clock, **options)
        service.startService()
        return service

    def test_plain_coroutine_and_deferred_functions_answer(self) -> None:
        self.start()
        self.source.give(call("plain", "a"), call("coroutine", "b"), call("deferred", "d"))
        self.assertEqual(self.source.results, [("a", [1])])
        self.gate.callback("x")
        self.assertIn(("b", "x"), self.source.results)

    def test_no_args_are_none(self) -> None:
        self.start()
        self.source.give(call("plain", args=b""))
        self.assertEqual(self.source.results, [("m", [None])])

    def test_failures_are_results_and_are_logged(self) -> None:
        self.start()
        self.source.give(call("raises", "a"), call("silent", "b"))
        self.assertEqual(
            self.source.results,
            [
                ("a", {"error": {"message": "no good"}}),
                ("b", {"error": {"message": "KeyError"}}),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(ValueError, KeyError)), 2)

    def test_a_failure_on_purpose_is_not_logged(self) -> None:
        self.start()
        self.source.give(call("says no"))
        self.assertEqual(self.source.results, [("m", {"error": {"message": "no", "code": 7}})])

    def test_a_failure_that_cannot_be_encoded_is_an_error_all_the_same(self) -> None:
        @self.callee.function("odd")
        def odd(args: Any) -> None:
            raise CallFailed({"message": object()})

        @self.callee.function("half a character")
        def half(args: Any) -> None:
            raise ValueError("\ud800")

        self.start()
        self.source.give(call("odd", "a"), call("half a character", "b"), call("plain", "c"))
        self.assertEqual(
            self.source.results,
            [
                ("a", {"error": {"message": "CallFailed"}}),
                ("b", {"error": {"message": "ValueError"}}),
                ("c", [1]),
            ],
        )
        self.flushLoggedErrors()

    def test_a_function_that_exits_is_a_failure_and_the_callee_goes_on(self) -> None:
        @self.callee.function("exits")
        def exits(args: Any) -> None:
            raise SystemExit(3)

        @self.callee.function("exits later")
        async def exits_later(args: Any) -> None:
            raise SystemExit(4)

        service = self.start()
        self.source.give(call("exits", "a"), call("exits later", "b"))
        self.source.give(call("plain", "c"))
        self.assertEqual(
            self.source.results,
            [
                ("a", {"error": {"message": "3"}}),
                ("b", {"error": {"message": "4"}}),
                ("c", [1]),
            ],
        )
        self.assertTrue(service.is_taking)
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 2)

    def test_a_timeout_of_the_functions_own_is_its_failure(self) -> None:
        @self.callee.function("impatient")
        async def impatient(args: Any) -> None:
            await Deferred().addTimeout(1, self.clock)

        self.start()
        self.source.give(call("impatient"))
        self.clock.advance(1)
        self.assertEqual([name for name, _ in self.source.results], ["m"])
        self.assertIn("error", self.source.results[0][1])
        self.flushLoggedErrors()

    def test_a_deferred_that_waits_for_another_ends_at_its_deadline_too(self) -> None:
        self.callee.function("chained")(
            lambda args: succeed(None).addCallback(lambda _: Deferred())
        )
        service = self.start(concurrency=1)
        self.source.give(call("chained", expires_at_s=2))
        self.clock.advance(2)
        self.clock.advance(0)
        self.assertEqual(self.source.limits, [1, 1])
        self.assertEqual((self.source.results, service.calls_failed), ([], 0))

    def test_lost_results_are_counted_and_told_now_and_then(self) -> None:
        self.source.store_result = lambda *_: fail(  # type: ignore[method-assign]
            BrokerUnavailable("down")
        )
        service = self.start()
        self.source.give(*(call("plain") for _ in range(100)))
        self.assertEqual(service.results_lost, 100)

    def test_further_calls_are_taken_while_results_are_being_stored(self) -> None:
        stored: list[Deferred[bool]] = []

        def store_result(call: IncomingCall, args: bytes) -> Deferred[bool]:
            stored.append(Deferred())
            return stored[-1]

        self.source.store_result = store_result  # type: ignore[method-assign]
        service = self.start(concurrency=1)
        for _ in range(512):
            self.source.give(call("plain"))
        self.assertEqual(len(self.source.limits), 512)  # the bound: no room until one is stored
        stored[0].callback(True)
        self.clock.advance(0)
        self.assertEqual(self.source.limits[512:], [1])
        stopped = service.stopService()
        self.assertNoResult(stopped)
        for result in stored[1:]:
            result.callback(True)
        self.clock.advance(0)
        self.successResultOf(stopped)

    def test_an_expired_call_is_not_run(self) -> None:
        service = self.start()
        self.source.give(call("plain", expires_at_s=0))
        self.assertEqual((self.source.results, service.calls_run), ([], 0))

    def test_a_function_is_cancelled_when_its_time_is_over(self) -> None:
        cancelled: list[Any] = []
        self.gate = Deferred(cancelled.append)
        self.start()
        self.source.give(call("deferred", expires_at_s=2))
        self.clock.advance(3)
        self.assertEqual((len(cancelled), self.source.results), (1, []))

    def test_it_takes_no_more_than_it_has_room_for(self) -> None:
        self.start(concurrency=2)
        self.assertEqual(self.source.limits, [2])
        self.source.give(call("coroutine", "a"))
        self.assertEqual(self.source.limits, [2, 1])
        self.source.give(call("coroutine", "b"))
        self.assertEqual(self.source.limits, [2, 1])
        self.gate.callback("x")
        self.clock.advance(0)
        self.assertEqual(self.source.limits, [2, 1, 2])

    def test_a_result_that_is_too_long_or_not_json_is_an_error(self) -> None:
        self.callee.function("odd")(lambda args: object())
        self.start(result_limit_bytes=10)
        self.source.give(call("plain", "a", b'"0123456789"'), call("odd", "b"))
        errors = dict(self.source.results)
        self.assertEqual(errors["a"]["error"]["message"], "the result has over 10 bytes")
        self.assertIn("object", errors["b"]["error"]["message"])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_it_tries_on_while_the_broker_is_down(self) -> None:
        self.source.is_down = True
        self.start()
        self.clock.pump([0.1] * 50)
        self.assertGreater(len(self.source.limits), 3)
        self.source.is_down = False
        self.clock.advance(5)
        self.source.give(call("plain"))
        self.assertEqual(self.source.results, [("m", [1])])

    def test_stop_waits_for_what_runs_and_takes_nothing_more(self) -> None:
        service = self.start()
        self.source.give(call("coroutine"))
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.gate.callback("late")
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.source.results, [("m", "late")])
        self.assertTrue(self.source.stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_cancels_what_outlasts_its_timeout(self) -> None:
        service = self.start(stop_timeout_s=1)
        self.source.give(call("coroutine", expires_at_s=60))
        stopped = service.stopService()
        self.clock.advance(2)
        self.successResultOf(stopped)
        self.assertEqual(self.source.results, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_uri_can_be_registered_once(self) -> None:
        for uri in ("plain", ""):
            with self.assertRaises(LocalProtocolError):
                self.callee.function(uri)
                self.callee.function(uri)(print)

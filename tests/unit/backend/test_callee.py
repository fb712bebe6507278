import contextlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import LogEvent, LogLevel, capturedLogs, eventAsText

from pelotontx.errors import (
    BrokerUnavailable,
    CallExpired,
    CallFailed,
    LocalProtocolError,
    QueueFull,
)
from tests.unit.backend.callee_case import CalleeCase, call


class ReactorCase(CalleeCase):
    """Functions of every kind that runs in the reactor's thread."""

    def setUp(self) -> None:
        super().setUp()
        self.gate: Deferred[str] = Deferred()

        @self.callee.function("plain", inline=True)
        def plain(args: Any) -> Any:
            return [args]

        @self.callee.function("coroutine")
        async def coroutine(args: Any) -> Any:
            return await self.gate

        @self.callee.function("deferred")
        def deferred(args: Any) -> Deferred[str]:
            return self.gate

        @self.callee.function("raises", inline=True)
        def raises(args: Any) -> None:
            raise ValueError("no good")

        @self.callee.function("says no", inline=True)
        def says_no(args: Any) -> None:
            raise CallFailed({"message": "no", "code": 7})

        @self.callee.function("silent", inline=True)
        def silent(args: Any) -> None:
            raise KeyError


class CalleeTests(ReactorCase):
    def warnings(self, events: list[LogEvent]) -> list[str]:
        return [eventAsText(event) for event in events if event["log_level"] is LogLevel.warn]

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
        @self.callee.function("odd", inline=True)
        def odd(args: Any) -> None:
            raise CallFailed({"message": object()})

        @self.callee.function("half a character", inline=True)
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

    def test_a_function_that_ends_everything_is_a_failure_and_the_callee_goes_on(self) -> None:
        def end(kind: type[BaseException], args: Any) -> None:
            raise kind("3")

        async def end_later(kind: type[BaseException], args: Any) -> None:
            raise kind("4")

        for kind in (SystemExit, KeyboardInterrupt, GeneratorExit):
            self.callee.function(f"now {kind}", inline=True)(partial(end, kind))
            self.callee.function(f"later {kind}")(partial(end_later, kind))
        service = self.start()
        for uri in tuple(self.callee.functions)[-6:]:
            self.source.give(call(uri, uri))
        answers = [result["error"]["message"] for _, result in self.source.results]
        self.assertEqual(answers, ["3", "4"] * 3)
        self.assertTrue(service.is_taking)
        logged = self.flushLoggedErrors(SystemExit, KeyboardInterrupt, GeneratorExit)
        self.assertEqual((len(logged), service.calls_failed), (6, 6))

    def test_a_call_that_another_program_put_on_the_wrong_list_ends_nothing(self) -> None:
        service = self.start()
        self.source.give(call("nobody's", "a"), call("plain", "b"))
        self.assertEqual(self.source.results[1:], [("b", [1])])
        self.assertIn("error", self.source.results[0][1])
        self.assertTrue(service.is_taking)
        self.flushLoggedErrors(KeyError)

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
        self.callee.function("chained", inline=True)(
            lambda args: succeed(None).addCallback(lambda _: Deferred())
        )
        service = self.start(concurrency=1)
        self.source.give(call("chained", expires_at_s=2))
        self.clock.pump([2, 0.1, 0])
        self.assertEqual(self.source.limits, [1, 1])
        self.assertEqual((self.source.results, service.calls_failed), ([], 0))
        self.assertEqual(service.calls_expired, 1)

    def test_an_expired_call_is_not_run(self) -> None:
        service = self.start()
        self.source.give(call("plain", expires_at_s=0))
        self.assertEqual((self.source.results, service.calls_run), ([], 0))
        self.assertEqual(service.calls_expired, 1)

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
        self.callee.function("odd", inline=True)(lambda args: object())
        self.start(result_limit_bytes=100)
        self.source.give(call("plain", "a", b'"%b"' % (b"0" * 100)), call("odd", "b"))
        errors = dict(self.source.results)
        self.assertEqual(errors["a"]["error"]["message"], "the result has over 100 bytes")
        self.assertIn("object", errors["b"]["error"]["message"])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_an_error_that_is_too_long_is_a_short_one_and_the_log_has_its_beginning(self) -> None:
        @self.callee.function("long", inline=True)
        def long(args: Any) -> None:
            raise ValueError("x" * 1_000_000)

        @self.callee.function("long on purpose", inline=True)
        def on_purpose(args: Any) -> None:
            raise CallFailed({"message": "x" * 1_000_000})

        self.start(result_limit_bytes=1000)
        with capturedLogs() as events:
            self.source.give(call("long", "a"), call("long on purpose", "b"), call("plain", "c"))
        short = {"error": {"message": "the error has over 1000 bytes"}}
        self.assertEqual(self.source.results, [("a", short), ("b", short), ("c", [1])])
        (line,) = map(eventAsText, events)
        self.assertIn("ValueError: xxx", line)
        self.assertLess(len(line), 20_000)

    def test_an_error_whose_text_ends_everything_is_a_failure_and_the_callee_goes_on(self) -> None:
        class Odd(Exception):
            def __str__(self) -> str:
                raise SystemExit

        @self.callee.function("odd", inline=True)
        def odd(args: Any) -> None:
            raise Odd

        service = self.start()
        self.source.give(call("odd", "a"), call("plain", "b"))
        odd_error = {"error": {"message": "Odd"}}
        self.assertEqual(self.source.results, [("a", odd_error), ("b", [1])])
        self.assertTrue(service.is_taking)
        self.assertEqual(len(self.flushLoggedErrors(Odd)), 1)

    def test_the_end_of_taking_that_nobody_asked_for_is_told(self) -> None:
        ends: list[bool] = []
        service = self.start(on_failure=lambda: ends.append(True))
        assert self.source.waiting is not None
        self.source.waiting.errback(RuntimeError("no broker says that"))
        self.assertEqual((service.is_taking, ends), (False, [True]))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        service.stopService()
        self.assertEqual(ends, [True])

    def test_a_stop_is_no_such_end(self) -> None:
        ends: list[bool] = []
        self.start(on_failure=lambda: ends.append(True)).stopService()
        self.assertEqual((self.source.stopped, ends), (True, []))

    def test_functions_that_never_end_and_take_every_place_are_warned_of_once(self) -> None:
        @self.callee.function("deaf")
        async def deaf(args: Any) -> None:
            while True:
                with contextlib.suppress(CancelledError):
                    await Deferred()
                    return

        self.start(concurrency=2, stop_timeout_s=0)
        self.source.give(call("deaf", "a", expires_at_s=10), call("deaf", "b", expires_at_s=999))
        with capturedLogs() as events:
            self.clock.pump([0.25] * 119)
        self.assertEqual(self.warnings(events), [])
        with capturedLogs() as events:
            self.clock.pump([0.25] * 400)
        (warning,) = self.warnings(events)
        self.assertIn("No calls were taken for 30 s: every place is in use, 1 of them", warning)

    def test_a_callee_that_is_always_busy_is_not_warned_of(self) -> None:
        self.start(concurrency=1)
        with capturedLogs() as events:
            for _ in range(10):
                self.gate = Deferred()
                self.source.give(call("coroutine", expires_at_s=999))
                self.clock.advance(10)
                self.gate.callback("x")
                self.clock.advance(0)
        self.assertEqual(self.warnings(events), [])

    def test_it_tries_on_while_the_broker_is_down(self) -> None:
        self.start()
        self.source.is_down = True
        self.source.give()
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
        self.assertEqual((self.source.results, service.calls_failed), ([], 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_does_not_end_when_it_is_cancelled_does_not_hold_up_the_stop(self) -> None:
        @self.callee.function("stubborn")
        async def stubborn(args: Any) -> None:
            while True:
                try:
                    await Deferred()
                except BaseException:
                    if self.gate.called:
                        raise

        service = self.start(stop_timeout_s=1)
        self.source.give(call("stubborn", expires_at_s=60))
        stopped = service.stopService()
        self.clock.advance(1)
        self.assertNoResult(stopped)
        self.clock.advance(1)
        self.successResultOf(stopped)
        self.assertTrue(self.source.stopped)
        self.assertEqual((service.calls_running, self.clock.getDelayedCalls()), (1, []))
        self.gate.callback("")

    def test_a_uri_can_be_registered_once(self) -> None:
        for uri in ("plain", ""):
            with self.assertRaises(LocalProtocolError):
                self.callee.function(uri)
                self.callee.function(uri)(print)


class ResultTests(ReactorCase):
    """Results on their way to the broker."""

    def test_a_result_that_finds_no_broker_is_stored_when_it_is_back(self) -> None:
        service = self.start()
        self.source.refuses = BrokerUnavailable("not connected yet")
        self.source.give(call("plain", "a"), call("plain", "b"))
        self.assertEqual((self.source.results, self.source.attempts), ([], ["a", "b"]))
        self.clock.advance(0.03)
        self.source.refuses = None
        self.clock.advance(0.1)
        self.assertEqual(self.source.results, [("a", [1]), ("b", [1])])
        self.assertEqual(service.results_lost, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_waits_is_stored_as_soon_as_another_result_is(self) -> None:
        self.start()
        self.source.refuses = BrokerUnavailable("down")
        self.source.give(call("plain", "a", expires_at_s=1000))
        self.clock.pump([0.1] * 100)  # the wait has become long
        self.source.refuses = None
        self.source.give(call("plain", "b", expires_at_s=1000))
        self.clock.advance(0)
        self.assertEqual(self.source.results, [("b", [1]), ("a", [1])])

    def test_attempts_become_rare_and_end_when_nobody_waits_any_more(self) -> None:
        service = self.start()
        self.source.refuses = BrokerUnavailable("down")
        self.source.give(*(call("plain", str(n), expires_at_s=20) for n in range(100)))
        self.clock.pump([0.01] * 1900)
        self.assertEqual(service.results_lost, 0)
        self.assertLess(len(self.source.attempts), 60 * 100)
        self.clock.pump([0.1] * 30)
        self.assertEqual(service.results_lost, 100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_full_list_loses_results_at_once(self) -> None:
        service = self.start()
        self.source.refuses = QueueFull("plain")
        self.source.give(*(call("plain") for _ in range(100)))
        self.assertEqual((service.results_lost, len(self.source.attempts)), (100, 100))

    def test_a_result_that_nobody_waits_for_is_an_expired_call(self) -> None:
        service = self.start()
        self.source.refuses = CallExpired("plain")
        self.source.give(call("plain"))
        self.clock.advance(1)
        self.assertEqual((service.calls_expired, service.results_lost), (1, 0))
        self.assertEqual(len(self.source.attempts), 1)

    def test_further_calls_are_taken_while_results_are_being_stored(self) -> None:
        service = self.start(concurrency=1)
        self.source.unanswered = unanswered = []
        for _ in range(512):
            self.source.give(call("plain"))
        self.assertEqual(len(self.source.limits), 512)  # the bound: no room until one is stored
        unanswered[0](None)
        self.clock.advance(0)
        self.assertEqual(self.source.limits[512:], [1])
        stopped = service.stopService()
        self.assertNoResult(stopped)
        for stored in unanswered[1:]:
            stored(None)
        self.clock.advance(0)
        self.successResultOf(stopped)

    def test_stop_stores_what_the_broker_takes_in_time(self) -> None:
        service = self.start(stop_timeout_s=5)
        self.source.refuses = BrokerUnavailable("down")
        self.source.give(call("plain", "a"))
        stopped = service.stopService()
        self.clock.pump([0.1] * 30)
        self.assertNoResult(stopped)
        self.source.refuses = None
        self.clock.pump([0.1] * 20)
        self.successResultOf(stopped)
        self.assertEqual((self.source.results, service.results_lost), ([("a", [1])], 0))

    def test_stop_gives_up_what_the_broker_does_not_take_in_time(self) -> None:
        service = self.start(stop_timeout_s=5)
        self.source.refuses = BrokerUnavailable("down")
        self.source.give(call("plain", "a", expires_at_s=60), call("plain", "b", expires_at_s=60))
        stopped = service.stopService()
        self.clock.pump([0.1] * 55)
        self.successResultOf(stopped)
        self.assertEqual(service.results_lost, 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DocumentationTests(CalleeCase):
    def test_the_calls_of_the_documentation_are_answered_as_it_says(self) -> None:
        text = (Path(__file__).parents[3] / "docs" / "callees.md").read_text()
        [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        names: dict[str, Any] = {"__name__": "shop"}
        exec(code, names)
        self.callee = names["callee"]
        rows = re.findall(r"^\| `(\S+)` \| `(.*)` \| `(.*)` \|$", text, re.MULTILINE)
        self.start()
        for number, (uri, args, _) in enumerate(rows):
            side = self.sources[self.callee.functions[uri].in_thread]
            side.give(call(uri, str(number), args.encode()))
            self.clock.until(lambda side=side, number=number: str(number) in dict(side.results))
        results = dict(self.sources[0].results + self.sources[1].results)
        for number, (uri, _, answer) in enumerate(rows):
            self.assertEqual((uri, results[str(number)]), (uri, json.loads(answer)))
        self.assertEqual({uri for uri, _, _ in rows}, set(self.callee.functions))

import argparse
import io
import json

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.cli.load import metrics, report
from pelotontx.cli.load.connections import in_turn
from pelotontx.cli.load.driver import Driver
from pelotontx.cli.load.options import Plan, add_arguments, plan_from
from pelotontx.cli.load.progress import Progress
from pelotontx.errors import Disconnected, LocalProtocolError, RequestRefused, SlowConsumer
from pelotontx.wire import juggler


def parse(*words):
    parser = argparse.ArgumentParser(prog="peloton load")
    add_arguments(parser)
    return plan_from(parser.parse_args(words))


class TestOptions:
    def test_defaults_are_the_original_ones(self):
        assert parse() == Plan()

    def test_short_options_mean_what_they_meant(self):
        plan = parse("-c", "5", "-d", "3s", "-n", "20", "-p", "10", "-r", "50ms", "-t", "200ms")
        assert (plan.clients, plan.duration_s, plan.count) == (5, 3.0, 20)
        assert (plan.args, plan.interval_s, plan.timeout_s) == (b'"10"', 0.05, 0.2)
        assert parse("-u", "other").uri == "other"
        assert parse("-c=5", "-r=50ms").interval_s == 0.05

    def test_rate_may_be_a_number_of_calls_a_second(self):
        assert parse("--rate", "20/s").interval_s == 0.05
        assert parse("--rate", "0.5").interval_s == 2.0

    def test_in_flight_is_a_closed_loop(self):
        plan = parse("--in-flight", "8")
        assert (plan.interval_s, plan.in_flight) == (None, 8)

    def test_number_alone_sets_no_time(self):
        assert (parse("-n", "5").duration_s, parse("-n", "5").count) == (None, 5)

    def test_size_is_that_of_a_string_for_the_echo(self):
        plan = parse("--size", "1KiB")
        assert (len(json.loads(plan.args)), plan.uri) == (1024, "test.echo")
        assert (parse("--size", "0B").args, parse("--size", "0B").uri) == (b'""', "test.echo")

    def test_args_are_sent_as_they_are(self):
        assert parse("--args", '{"a":  1.50}').args == b'{"a":  1.50}'

    def test_events_have_publishers_and_a_channel(self):
        plan = parse("--pubsub", "-c", "10", "--publishers", "2", "--channels", "3")
        assert (plan.is_pubsub, plan.publishers, plan.clients, plan.channels) == (True, 2, 10, 3)
        assert plan.uri == "load.test"
        assert not parse("--publishers", "2").is_pubsub

    def test_handshakes_to_other_machines_are_paced(self):
        assert parse("--url", "ws://[::1]:8080/ws").connect_interval_s == 0
        assert parse("--url", "ws://example.test/ws").connect_interval_s > 0
        plan = parse("--url", "ws://example.test/ws", "--connect-rate", "100/s")
        assert plan.connect_interval_s == 0.01

    def test_headers_are_taken(self):
        plan = parse("--header", "Authorization: Bearer a:b", "--header", "X: y")
        assert plan.headers == {"Authorization": "Bearer a:b", "X": "y"}

    @pytest.mark.parametrize(
        "words",
        [
            *("-c 0", "-c x", "-n 0", "-r 0", "-r 0s", "-r fast", "-d 0s", "-t soon", "-t 0.1ms"),
            *("--size 1TB", "--size x", "--args {", "--header x", "--in-flight 0"),
            *("-r 1s --in-flight 2", "-p 1 --size 2B", "--warm-up x", "--publishers 0"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, words, capsys):
        with pytest.raises(SystemExit) as caught:
            parse(*words.split())
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err

    def test_rate_of_0_is_told_what_to_use(self, capsys):
        with pytest.raises(SystemExit):
            parse("-r", "0")
        assert "as fast as possible is --in-flight" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["--url", "http://x"], ["--header", "a b: c"]])
    def test_unusable_url_or_header_is_refused(self, words):
        with pytest.raises(LocalProtocolError):
            parse(*words)


class FakeConnection:
    """A connection whose server is the test."""

    STATE_OPEN = state = 3

    def __init__(self, on_message, on_close, on_subscription):
        self.on_subscription = on_subscription
        self.on_message = on_message
        self.on_close = on_close
        self.sent = []
        self.is_aborted = False
        self.is_clogged = False

    def send(self, frame):
        if self.is_clogged:
            raise SlowConsumer(1)
        self.sent.append(json.loads(frame))
        if self.sent[-1]["meta"]["type"] == juggler.SUB:
            self.answer(self.sent[-1], self.on_subscription)

    def answer(self, request, *types, **payload):
        for type_ in types:
            reply = {"for": request["meta"]["uuid"], "args": 1, **payload}
            meta = {"type": type_, "uuid": "00000000-0000-4000-8000-000000000000"}
            self.on_message(json.dumps({"meta": meta, "payload": reply}).encode())

    def abort(self):
        self.is_aborted = True
        self.lose("dropped")

    def lose(self, reason):
        self.state = 0
        self.on_close(Disconnected(reason, 1006))

    def close(self, code=1000, reason=""):
        self.state = 0
        return succeed(None)


class DriverTestCase(SynchronousTestCase):
    def make(self, **plan):
        self.clock = Clock()
        self.connections = []
        self.refusal = None
        self.on_subscription = juggler.ACK

        def connector(reactor, url, *, wheel, on_message, on_close, subprotocols, headers):
            self.assertEqual(subprotocols, ["juggler.0"])
            if self.refusal is not None and len(self.connections) == 1:
                return self.refusal
            self.connections.append(FakeConnection(on_message, on_close, self.on_subscription))
            return succeed(self.connections[-1])

        self.driver = Driver(
            Plan(**plan), reactor=self.clock, now=self.clock.seconds, connector=connector
        )

    def start(self, **plan):
        self.make(**plan)
        self.successResultOf(self.driver.open())
        self.finished = self.driver.drive()

    def figures(self, server=None):
        self.successResultOf(self.finished)
        self.successResultOf(self.driver.close())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return report.summary(self.driver, server)

    def advance(self, seconds, step=0.01):
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def answer_all(self, connection, *types, start=0, **payload):
        """Answers what has been sent from number `start` on; returns how much there is."""
        count = len(connection.sent)
        for request in connection.sent[start:count]:
            connection.answer(request, *types, **payload)
        return count


class ClosedLoopTests(DriverTestCase):
    def test_every_result_makes_room_for_the_next_call(self):
        self.start(clients=2, interval_s=None, in_flight=3, duration_s=1.0)
        self.assertEqual([len(item.sent) for item in self.connections], [3, 3])
        first = self.connections[0].sent[0]
        self.assertEqual(first["payload"]["uri"], "test.delay")
        self.assertEqual(first["payload"]["timeout"], 1_000_000_000)
        self.assertEqual(first["payload"]["args"], "100")
        self.connections[0].answer(first, juggler.ACK)
        self.assertEqual(len(self.connections[0].sent), 3)
        self.connections[0].answer(first, juggler.RES)
        self.assertEqual(len(self.connections[0].sent), 4)

    def test_it_ends_when_the_last_call_has_its_answer(self):
        self.start(clients=1, interval_s=None, duration_s=0.2)
        connection = self.connections[0]
        self.advance(0.3)
        self.assertNoResult(self.finished)
        self.assertEqual(self.answer_all(connection, juggler.ACK, juggler.RES), 1)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual(len(connection.sent), 1)
        self.assertEqual((figures["ok"], figures["counts"]["results"]), (True, 1))

    def test_number_of_calls_is_kept_exactly(self):
        self.start(clients=3, interval_s=None, in_flight=2, duration_s=None, count=20)
        answered = [0, 0, 0]
        for _ in range(20):
            for number, connection in enumerate(self.connections):
                answered[number] = self.answer_all(
                    connection, juggler.ACK, juggler.RES, start=answered[number]
                )
        self.advance(0.1)
        self.assertEqual(self.figures()["counts"]["sent"], 20)

    def test_refused_client_pauses(self):
        self.start(clients=1, interval_s=None, duration_s=1.0)
        connection = self.connections[0]
        self.answer_all(connection, juggler.NACK, code=429, message="too many messages")
        self.assertEqual(len(connection.sent), 1)
        self.advance(0.3)
        self.assertEqual(len(connection.sent), 2)

    def test_expired_call_makes_room_and_is_told(self):
        self.start(clients=1, interval_s=None, duration_s=0.9, timeout_s=0.5)
        connection = self.connections[0]
        self.answer_all(connection, juggler.ACK)
        self.advance(0.6)
        self.assertEqual(len(connection.sent), 2)
        self.answer_all(connection, juggler.ACK, juggler.RES, start=1)
        self.answer_all(connection, juggler.ACK, juggler.RES, start=2)
        self.advance(3.0)
        figures = self.figures()
        self.assertEqual(figures["counts"]["expired"], 1)
        self.assertIn("1 expired", figures["problems"])

    def test_expired_calls_may_be_allowed(self):
        self.start(
            clients=1, interval_s=None, duration_s=None, count=2, timeout_s=0.5, allows_expired=True
        )
        self.answer_all(self.connections[0], juggler.ACK)
        self.advance(0.6)
        self.answer_all(self.connections[0], juggler.ACK, juggler.RES, start=1)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual((figures["counts"]["expired"], figures["ok"]), (1, True))

    def test_lost_connection_is_told_and_the_others_go_on(self):
        self.start(clients=2, interval_s=None, duration_s=1.0)
        self.connections[0].lose("too many messages")
        self.answer_all(self.connections[1], juggler.ACK, juggler.RES)
        self.advance(1.5)
        self.answer_all(self.connections[1], juggler.ACK, juggler.RES, start=1)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual(
            figures["disconnects"], [{"reason": "too many messages (1006)", "count": 1}]
        )
        self.assertEqual(figures["counts"]["lost"], 1)
        self.assertEqual(figures["problems"], ["1 lost", "1 connection lost"])

    def test_run_ends_when_no_connection_is_left(self):
        self.start(clients=1, interval_s=None, duration_s=100.0)
        self.connections[0].lose("gone")
        self.advance(0.1)
        self.assertFalse(self.figures()["ok"])

    def test_server_that_does_not_read_is_dropped(self):
        self.start(clients=1, interval_s=None, duration_s=1.0)
        connection = self.connections[0]
        connection.is_clogged = True
        self.answer_all(connection, juggler.ACK, juggler.RES)
        self.assertTrue(connection.is_aborted)
        self.advance(0.1)
        self.assertIn("1 connection lost", self.figures()["problems"])

    def test_server_that_speaks_nonsense_is_left(self):
        self.start(clients=1, interval_s=None, duration_s=1.0)
        connection = self.connections[0]
        connection.on_message(b"{")
        self.assertNotEqual(connection.state, connection.STATE_OPEN)
        connection.lose("bad JSON")
        self.advance(0.1)
        self.assertFalse(self.figures()["ok"])

    def test_interrupted_run_waits_a_moment_and_reports(self):
        self.start(clients=1, interval_s=None, in_flight=2, duration_s=100.0, timeout_s=60.0)
        connection = self.connections[0]
        self.driver.interrupt()
        connection.answer(connection.sent[0], juggler.ACK, juggler.RES)
        self.advance(1.2)
        figures = self.figures()
        self.assertEqual(figures["counts"]["unfinished"], 1)
        self.assertEqual((figures["interrupted"], figures["ok"]), (True, True))


class OpenLoopTests(DriverTestCase):
    def test_clients_take_turns_at_their_rate(self):
        self.start(clients=4, interval_s=0.1, duration_s=1.0)
        self.advance(0.999, step=0.001)
        self.assertEqual([len(item.sent) for item in self.connections], [10, 10, 10, 10])

    def test_as_many_are_sent_as_the_rate_and_the_duration_say(self):
        self.start(clients=100, interval_s=0.1, duration_s=1.0, warm_up_s=0.5)
        self.clock.advance(3.0)
        self.assertEqual(sum(len(item.sent) for item in self.connections), 1500)

    def test_latency_counts_from_when_the_call_was_due(self):
        self.start(clients=1, interval_s=0.1, duration_s=1.0)
        # We, or the server, stand still for half a second.
        self.clock.advance(0.5)
        connection = self.connections[0]
        self.assertEqual(len(connection.sent), 6)
        answered = self.answer_all(connection, juggler.ACK, juggler.RES)
        for _ in range(60):
            self.advance(0.01)
            answered = self.answer_all(connection, juggler.ACK, juggler.RES, start=answered)
        latency = self.figures()["latency_ms"]
        self.assertAlmostEqual(latency["max"], 500, delta=1)
        self.assertGreaterEqual(self.driver.lag_s, 0.39)

    def test_calls_that_were_due_before_the_end_are_sent_after_a_stall(self):
        self.start(clients=1, interval_s=0.1, duration_s=1.0)
        self.clock.advance(5.0)
        self.assertEqual(len(self.connections[0].sent), 10)

    def test_warm_up_is_not_measured(self):
        self.start(clients=1, interval_s=0.1, duration_s=0.5, warm_up_s=0.5)
        answered = 0
        for _ in range(120):
            self.advance(0.01)
            answered = self.answer_all(
                self.connections[0], juggler.ACK, juggler.RES, start=answered
            )
        figures = self.figures()
        self.assertEqual((figures["counts"]["sent"], figures["measured"]), (10, 5))


class EventTests(DriverTestCase):
    def test_events_are_expected_by_every_subscriber_of_their_channel(self):
        self.start(clients=4, publishers=1, channels=2, uri="c", interval_s=0.1, duration_s=0.5)
        *subscribers, publisher = self.connections
        channels = [item.sent[0]["payload"]["channel"] for item in subscribers]
        self.assertEqual(channels, ["c.0", "c.1", "c.0", "c.1"])
        self.advance(0.6)
        self.answer_all(publisher, juggler.ACK)
        for request in publisher.sent:
            for subscriber, channel in zip(subscribers, channels, strict=True):
                if channel == request["payload"]["channel"]:
                    subscriber.answer(request, juggler.EVNT, channel=channel)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual(figures["counts"]["expected"], 10)
        self.assertEqual((figures["counts"]["received"], figures["ok"]), (10, True))
        self.assertIn("4 subscribers of 2 channels", report.render(figures))

    def test_missing_events_are_told(self):
        self.start(clients=2, publishers=1, interval_s=0.1, duration_s=None, count=1)
        *subscribers, publisher = self.connections
        self.answer_all(publisher, juggler.ACK)
        subscribers[0].answer(publisher.sent[0], juggler.EVNT, channel="test.delay")
        self.advance(2.2)
        self.assertEqual(self.figures()["problems"], ["1 missing"])

    def test_lost_subscriber_is_told(self):
        self.start(clients=1, publishers=1, interval_s=None, duration_s=None, count=1)
        self.connections[0].lose("slow consumer")
        self.answer_all(self.connections[1], juggler.ACK)
        self.advance(2.2)
        self.assertIn("1 connection lost", self.figures()["problems"])


class OpeningTests(DriverTestCase):
    def test_first_refusal_ends_the_opening(self):
        self.make(clients=3)
        self.refusal = Deferred()
        opening = self.driver.open()
        self.refusal.errback(Disconnected("503"))
        self.failureResultOf(opening, Disconnected)
        self.assertEqual(self.driver.opened, 2)
        self.successResultOf(self.driver.close())

    def test_interruption_ends_the_opening(self):
        self.make(clients=3)
        self.refusal = Deferred()
        opening = self.driver.open()
        self.driver.interrupt()
        self.failureResultOf(opening, CancelledError)
        self.successResultOf(self.driver.close())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused_subscription_ends_the_opening(self):
        self.make(clients=1, publishers=1)
        self.on_subscription = juggler.NACK
        refusal = self.failureResultOf(self.driver.open(), RequestRefused).value
        self.assertEqual(refusal.code, 0)

    def test_handshakes_are_bounded_and_paced(self):
        clock = Clock()
        begun = []

        def step(number):
            async def run():
                begun.append(number)
                await waiting[number]

            return run

        waiting = [Deferred() for _ in range(4)]
        done = in_turn(clock, map(step, range(4)), at_once=2, interval_s=0.5)
        self.assertEqual(begun, [0])
        clock.advance(0.5)
        self.assertEqual(begun, [0, 1])
        clock.advance(5)
        self.assertEqual(begun, [0, 1])
        waiting[1].callback(None)
        self.assertEqual(begun, [0, 1, 2])
        for number in (0, 2, 3):
            waiting[number].callback(None)
        self.successResultOf(done)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ReportTests(DriverTestCase):
    def run_of(self, count):
        self.start(clients=1, interval_s=None, duration_s=None, count=count)
        answered = 0
        for _ in range(count):
            self.clock.advance(0.0123)
            answered = self.answer_all(
                self.connections[0], juggler.ACK, juggler.RES, start=answered
            )
        self.advance(0.1)
        return self.figures({"messages_read{type=CALL}": 3.0, "process_cpu_seconds": 0.3})

    def test_table_has_rate_latency_histogram_and_the_servers_counts(self):
        text = report.render(self.run_of(3))
        lines = [line.split() for line in text.splitlines()]
        self.assertIn(["results/s", "81.3", "over", "0.0", "s"], lines)
        head = ["latency", "min", "mean", "p50", "p90", "p99", "p99.9", "max"]
        self.assertIn(head, lines)
        self.assertIn(["12.3", "ms"] * 7, lines)
        self.assertIn(f"12 ms to    13 ms |{'#' * 40}| 100.0%", text)
        self.assertIn(["messages_read{type=CALL}", "3"], lines)
        self.assertIn("(100,000 µs each)", text)
        self.assertTrue(text.endswith("\nok"))

    def test_figures_are_json(self):
        figures = self.run_of(3)
        self.assertEqual(json.loads(json.dumps(figures)), figures)
        self.assertEqual(figures["histogram"], [{"from_ms": 12.0, "to_ms": 13.0, "count": 3}])

    def test_run_in_which_all_was_refused_is_not_ok(self):
        self.start(clients=1, interval_s=None, duration_s=None, count=1)
        self.answer_all(self.connections[0], juggler.NACK, code=429, message="a\x1b[2Jb")
        self.advance(0.1)
        text = report.render(self.figures())
        self.assertIn("1 with 429 a\\x1b[2Jb", text)
        self.assertIn("hint: NACK 429: raise rpc.message_rate", text)
        self.assertTrue(text.endswith("FAILED: nothing came back"))

    def test_run_in_which_every_result_was_an_error_is_not_ok_and_tells_the_first(self):
        self.start(clients=1, interval_s=None, duration_s=None, count=2)
        for start, text in enumerate(("no \x1bsuch", "other")):
            error = {"error": {"message": text}}
            self.answer_all(self.connections[0], juggler.ACK, juggler.RES, start=start, args=error)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual((figures["ok"], figures["counts"]["failed"]), (False, 2))
        text = report.render(figures)
        self.assertIn("first error: no \\x1bsuch\n", text)
        self.assertTrue(text.endswith("FAILED: every result was an error"))

    def test_some_errors_are_told_and_no_failure_of_the_run(self):
        self.start(clients=1, interval_s=None, duration_s=None, count=2)
        connection = self.connections[0]
        self.answer_all(connection, juggler.ACK, juggler.RES, args={"error": [1]})
        self.answer_all(connection, juggler.ACK, juggler.RES, start=1)
        self.advance(0.1)
        figures = self.figures()
        self.assertEqual((figures["ok"], figures["first_error"]), (True, '{"error": [1]}'))

    def test_progress_is_a_line_a_second(self):
        self.start(clients=1, interval_s=None, duration_s=10.0)
        stream = io.StringIO()
        progress = Progress(stream, 0.0)
        progress.show(self.driver, 0.9)
        self.assertEqual(stream.getvalue(), "")
        progress.show(self.driver, 1.0)
        progress.show(self.driver, 1.5)
        progress.end()
        self.assertEqual(stream.getvalue(), "    1 s  0/s  in flight 1\n")

    def test_progress_on_a_terminal_is_one_line_and_leaves_none(self):
        self.make(clients=3)
        stream = Terminal()
        progress = Progress(stream, 0.0)
        progress.show(self.driver, 1.0)
        progress.end()
        self.assertEqual(stream.getvalue(), "\r\x1b[Kconnecting: 0 of 3\r\x1b[K")

    def test_progress_that_nobody_reads_is_none(self):
        self.start(clients=1, interval_s=None, duration_s=10.0)
        stream = BrokenPipe()
        progress = Progress(stream, 0.0)
        progress.show(self.driver, 1.0)
        progress.show(self.driver, 2.0)
        progress.end()
        self.assertEqual(stream.attempts, 1)


class BrokenPipe(Terminal):
    attempts = 0

    def write(self, text):
        self.attempts += 1
        raise BrokenPipeError


PAGE = """\
# HELP peloton_messages_read_total By type.
# TYPE peloton_messages_read_total counter
peloton_messages_read_total{type="CALL"} 7.0
# HELP peloton_websocket_connections Now.
# TYPE peloton_websocket_connections gauge
peloton_websocket_connections 1.0
# HELP process_cpu_seconds_total CPU.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5
"""


class TestMetrics:
    def test_counters_are_read_from_prometheus_text(self):
        assert metrics.counters(PAGE) == {
            "messages_read{type=CALL}": 7.0,
            "process_cpu_seconds": 1.5,
        }

    def test_numbers_are_read_from_expvar(self):
        page = '{"cmdline":["x"],"memstats":{"Alloc":5},"juggler":{"CallMsgs":3,"ok":true},"n":1}'
        assert metrics.counters(page) == {"juggler.CallMsgs": 3, "n": 1}

    @pytest.mark.parametrize("page", ["{", "<html><body>no</body></html>"])
    def test_anything_else_is_an_error(self, page):
        with pytest.raises(ValueError):  # noqa: PT011  # whatever the parsers say
            metrics.counters(page)

    def test_only_what_changed_is_shown(self):
        assert metrics.difference({"a": 1, "b": 2}, {"a": 1, "b": 5, "c": 1}) == {"b": 3, "c": 1}

    def test_metrics_are_looked_for_at_the_same_server(self):
        assert metrics.candidates("wss://host:8443/ws") == [
            "https://host:8443/metrics",
            "https://host:8443/debug/vars",
        ]

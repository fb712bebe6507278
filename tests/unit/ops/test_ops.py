import io
import json
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.ops.health import Health
from pelotontx.ops.logging import observer
from pelotontx.ops.metrics import Metrics


class HealthTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.health = Health(self.clock, version="1")

    def test_all_parts_well_is_ok(self) -> None:
        self.health.add("broker", lambda: (True, {"available": True}))
        self.clock.advance(2)
        is_well, report = self.health.report()
        self.assertTrue(is_well)
        self.assertEqual(
            report,
            {"status": "ok", "version": "1", "uptime_s": 2, "broker": {"available": True}},
        )

    def test_one_part_unwell_is_unavailable(self) -> None:
        self.health.add("node", lambda: (True, "n"))
        self.health.add("broker", lambda: (False, {"available": False}))
        is_well, report = self.health.report()
        self.assertFalse(is_well)
        self.assertEqual(report["status"], "unavailable")

    def test_a_stopping_server_is_not_well(self) -> None:
        self.health.is_stopping = True
        self.assertEqual(self.health.report()[1]["status"], "stopping")


class MetricsTests(SynchronousTestCase):
    def test_values_are_read_at_each_scrape(self) -> None:
        metrics, value = Metrics(), [1.0]
        metrics.gauge("things", "How many.", lambda: value[0])
        metrics.counter("done", "So far.", lambda: 3)
        metrics.counters("messages", "By type.", "type", lambda: {"CALL": 2})
        page = metrics.page().decode()
        self.assertIn("peloton_things 1.0\n", page)
        self.assertIn("peloton_done_total 3.0\n", page)
        self.assertIn('peloton_messages_total{type="CALL"} 2.0\n', page)
        self.assertIn("process_open_fds", page)
        value[0] = 5
        self.assertIn("peloton_things 5.0\n", metrics.page().decode())


class LoggingTests(SynchronousTestCase):
    def log(self, **options: Any) -> str:
        stream = io.StringIO()
        log = Logger(namespace="n", observer=LogPublisher(observer(stream, **options)))
        log.debug("fine {x}", x=1)
        log.info("plain {x}", x=2)
        log.warn("odd {x}", x=3)
        return stream.getvalue()

    def test_text_is_a_line_an_event_from_the_level_on(self) -> None:
        self.assertEqual(
            [line.split(" ", 1)[1] for line in self.log(level="info", format="text").splitlines()],
            ["info  plain 2", "warn  odd 3"],
        )

    def test_json_is_an_object_a_line(self) -> None:
        (line,) = self.log(level="warn", format="json").splitlines()
        event = json.loads(line)
        self.assertEqual((event["log_format"], event["x"]), ("odd {x}", 3))

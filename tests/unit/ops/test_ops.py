import io
import json
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import Response
from pelotontx.ops.health import Health, routes
from pelotontx.ops.logging import observer
from tests.unit.web.test_app import request


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


class HealthRoutesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.is_well = True
        self.health = Health(Clock(), version="1")
        self.health.add("broker", lambda: (self.is_well, {"available": self.is_well}))

    def ask(self, target: str, *, path: str = "/health") -> tuple[int, dict[str, Any]]:
        response = routes(path, self.health).handle(request("GET", target))
        assert isinstance(response, Response)
        self.assertEqual(response.headers.get("Cache-Control"), "no-store")
        body: dict[str, Any] = json.loads(response.body)
        return response.status, body

    def test_a_server_that_is_well_is_live_and_ready(self) -> None:
        self.assertEqual(self.ask("/health/live"), (200, {"status": "ok"}))
        self.assertEqual(self.ask("/health/ready"), (200, {"status": "ok"}))
        status, report = self.ask("/health")
        self.assertEqual((status, report["broker"]), (200, {"available": True}))

    def test_without_its_broker_it_is_live_and_not_ready(self) -> None:
        self.is_well = False
        self.assertEqual(self.ask("/health/live"), (200, {"status": "ok"}))
        self.assertEqual(self.ask("/health/ready"), (503, {"status": "unavailable"}))
        self.assertEqual(self.ask("/health")[0], 503)

    def test_a_stopping_server_is_live_and_not_ready(self) -> None:
        self.health.is_stopping = True
        self.assertEqual(self.ask("/health/live")[0], 200)
        self.assertEqual(self.ask("/health/ready"), (503, {"status": "stopping"}))

    def test_a_path_may_end_in_a_slash(self) -> None:
        self.assertEqual(self.ask("/", path="/")[0], 200)
        self.assertEqual(self.ask("/live", path="/")[0], 200)


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

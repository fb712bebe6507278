"""What a server shows of itself: every figure, its zeros, and its line in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.broker.hub import Hub
from pelotontx.broker.memory import MemoryBroker
from pelotontx.config.sections import BrokerConfig, Config, ServerConfig
from pelotontx.gateway.juggler import JugglerEndpoint
from pelotontx.net.admission import Admission
from pelotontx.net.http import HTTPFactory, Response
from pelotontx.net.kept import ProcessState
from pelotontx.net.tls import Certificates
from pelotontx.net.websocket import ServerFactory
from pelotontx.net.wheel import Wheel
from pelotontx.ops.access_log import AccessLog
from pelotontx.ops.debug_vars import DebugVars
from pelotontx.ops.health import Health
from pelotontx.ops.metrics import Metrics
from pelotontx.ops.stalls import StallMonitor
from pelotontx.services.listeners import Fronts, Listeners
from pelotontx.services.watch import (
    Watched,
    shown_command_line,
    watch_debug_vars,
    watch_health,
    watch_metrics,
)
from pelotontx.wire import juggler
from pelotontx.wire.forwarded import Proxies

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"

# Of github.com/mna/juggler: doc/metrics.md, and the two that its server counts besides.
JUGGLER_SERVER = {
    "RecoveredPanics",
    *("Msgs", "MsgsRead", "MsgsWrite", "MsgsUnknown"),
    *("MsgsCALL", "MsgsPUB", "MsgsSUB", "MsgsUNSB", "MsgsNACK", "MsgsACK", "MsgsRES", "MsgsEVNT"),
    *("SlowProcessMsg", "SlowProcessMsgCALL", "SlowProcessMsgPUB", "SlowProcessMsgSUB"),
    *("SlowProcessMsgUNSB", "SlowProcessMsgNACK", "SlowProcessMsgACK", "SlowProcessMsgRES"),
    "SlowProcessMsgEVNT",
    *("ActiveConns", "TotalConns", "ActiveConnGoros", "TotalConnGoros"),
    *("WriteLimitExceeded", "WriteLockTimeouts"),
}
JUGGLER_BROKER = {
    *("FailedCallPayloadUnmarshals", "FailedPTTLCalls", "ExpiredCalls", "Calls"),
    *("FailedEvntPayloadUnmarshals", "Events"),
    *("FailedResPayloadUnmarshals", "FailedPTTLResults", "ExpiredResults", "Results"),
}


class OneCertificate(Certificates):
    def expiry(self) -> dict[str, float]:
        return {"shop.pem": 2e9}


class WatchCase(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        wheel = Wheel(clock)
        broker = self.broker = MemoryBroker(clock)
        self.events_broker = MemoryBroker(clock)
        self.hub = Hub(caller=broker.caller, pubsub=self.events_broker.pubsub, wheel=wheel)
        self.endpoint = JugglerEndpoint(hub=self.hub, clock=clock, wheel=wheel)
        admission = Admission(clock.seconds)
        fronts = Fronts(
            lambda handle: HTTPFactory(handle, wheel=wheel, clock=clock),
            lambda what: lambda request: Response(200),
        )
        self.watched = Watched(
            endpoint=self.endpoint,
            hub=self.hub,
            broker=broker,
            events_broker=self.events_broker,
            admission=admission,
            http=fronts,
            listeners=Listeners(
                clock,
                listen=(),
                tables=(),
                certificates={0: OneCertificate([])},
                fronts=fronts,
                admission=admission,
                wheel=wheel,
                proxies=Proxies(),
            ),
            access_log=AccessLog(clock, "-"),
            websockets=ServerFactory(clock, wheel=wheel, accept=self.endpoint.accept),
            stalls=StallMonitor(clock),
        )
        self.service = CalleeService(Callee(), broker.callee, clock=clock)
        self.watched.callees["callee[0]", "shop.rpc:callee"] = self.service
        self.metrics = Metrics(clock)
        watch_metrics(self.metrics, self.watched)

    def families(self) -> dict[str, Metric]:
        """What is on the page and ours, by the name that is written there."""
        page = self.successResultOf(Deferred.fromCoroutine(self.metrics.page())).decode()
        return {
            family.name + ("_total" if family.type == "counter" else ""): family
            for family in text_string_to_metric_families(page)
            if family.name.startswith("peloton_")
        }

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Every sample of a family by its labels' values, the labels in alphabetical order."""
        return {tuple(s.labels.values()): s.value for s in self.families()[name].samples}


class MetricsTests(WatchCase):
    def test_names_keep_to_prometheus_rules(self) -> None:
        for name, family in self.families().items():
            with self.subTest(name=name):
                self.assertRegex(name, r"^peloton(_[a-z0-9]+)+$")
                self.assertRegex(family.documentation, r"^\S.*\.$")
                self.assertIn(family.type, ("counter", "gauge", "histogram"))
                if family.type != "counter":
                    self.assertNotRegex(name, r"_(total|count|sum|bucket)$")
                self.assertNotRegex(name, r"_(ms|milliseconds|minutes|kib|kilobytes)(_|$)")
                labels = {label for sample in family.samples for label in sample.labels}
                self.assertEqual("le" in labels, family.type == "histogram")

    def test_each_is_documented_and_nothing_else_is(self) -> None:
        rows = re.findall(
            r"^\| `(peloton_\w+)`(?:\{([\w, ]+)\})? \| (\w+) \| (.+) \|$",
            OPERATIONS.read_text(),
            re.MULTILINE,
        )
        documented = {name: (labels, kind) for name, labels, kind, _ in rows}
        self.assertEqual(len(documented), len(rows))
        self.watched.processes["a", "b"] = lambda: [state("running")]
        self.watched.broker.caller.store_call("u", "m", b"", 1000, self.assertIsNone)
        shown = {
            name: (
                ", ".join(label for label in family.samples[0].labels if label != "le"),
                family.type,
            )
            for name, family in self.families().items()
        }
        self.assertEqual(documented, shown)

    def test_before_anything_has_happened_every_counter_shows_its_zeros(self) -> None:
        for name, family in self.families().items():
            if family.type == "counter" and not name.startswith("peloton_process_"):
                with self.subTest(name=name):
                    self.assertEqual({sample.value for sample in family.samples}, {0})
        self.assertEqual(
            self.values("peloton_messages_read_total"),
            {("CALL",): 0, ("PUB",): 0, ("SUB",): 0, ("UNSB",): 0, ("APPLICATION",): 0},
        )
        self.assertEqual(
            self.values("peloton_messages_written_total"),
            {("NACK",): 0, ("ACK",): 0, ("RES",): 0, ("EVNT",): 0, ("APPLICATION",): 0},
        )

    def test_what_the_parts_count_is_shown(self) -> None:
        self.endpoint.messages_read[juggler.SUB] = 3
        assert self.endpoint.call_latency is not None
        assert self.hub.fan_out is not None
        self.endpoint.call_latency.observe(0.02)
        self.endpoint.nacks.update({429: 2, 401: 1})
        self.hub.fan_out.observe(7)
        self.hub.calls_stored = 5
        self.service.calls_failed = 2
        self.assertEqual(self.values("peloton_messages_read_total")["SUB",], 3)
        self.assertEqual(self.values("peloton_calls_stored_total"), {(): 5})
        self.assertEqual(
            self.values("peloton_callee_calls_failed_total"), {("callee[0]", "shop.rpc:callee"): 2}
        )
        nacks = self.values("peloton_nacks_total")
        self.assertEqual((nacks["401",], nacks["403",], nacks["429",]), (1, 0, 2))
        latency = self.values("peloton_call_latency_seconds")
        self.assertEqual((latency["0.01",], latency["0.025",]), (0, 1))
        receivers = self.values("peloton_event_receivers")
        self.assertEqual((receivers["5.0",], receivers["10.0",]), (0, 1))

    def test_processes_are_counted_by_state_and_restarts_added_up(self) -> None:
        states = [state("running", 1), state("running", 2), state("waiting", 4)]
        self.watched.processes["callee[1]", "o"] = lambda: states
        counts = self.values("peloton_processes")
        self.assertEqual(counts["o", "callee[1]", "running"], 2)
        self.assertEqual(counts["o", "callee[1]", "waiting"], 1)
        self.assertEqual(counts["o", "callee[1]", "failed"], 0)
        self.assertEqual(self.values("peloton_process_restarts_total"), {("o", "callee[1]"): 7})


def state(name: str, restarts: int = 0) -> ProcessState:
    return {"name": "p", "pid": 1, "state": name, "restarts": restarts, "for_s": 0.0}


class HealthTests(WatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.health = Health(Clock(), version="1")
        brokers = BrokerConfig(url="redis://:a@calls", pubsub_url="redis://:b@events")
        config = Config(broker=brokers, server=ServerConfig(node="n"))
        watch_health(self.health, self.watched, config=config)

    def test_both_brokers_are_named_without_their_passwords(self) -> None:
        is_well, report = self.health.report()
        self.assertTrue(is_well)
        self.assertEqual(report["node"], "n")
        self.assertEqual(
            report["broker"],
            {"url": "redis://***@calls", "pubsub_url": "redis://***@events", "available": True},
        )

    def test_without_either_broker_the_server_is_not_well(self) -> None:
        for broker in (self.broker, self.events_broker):
            broker.available = False
            self.assertFalse(self.health.report()[0])
            self.assertEqual(self.values("peloton_broker_available"), {(): 0})
            broker.available = True
        self.assertTrue(self.health.report()[0])

    def test_a_link_that_is_down_is_told_from_the_others(self) -> None:
        self.events_broker.available = False
        self.assertEqual(
            self.values("peloton_broker_connected"),
            {("calls",): 1, ("results",): 1, ("publishing",): 0, ("events",): 1},
        )


class DebugVarsTests(WatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.variables = DebugVars([])
        watch_debug_vars(self.variables, self.watched)

    def juggler(self) -> dict[str, Any]:
        counts: dict[str, Any] = self.variables.read()["juggler"]
        return counts

    def test_the_keys_are_jugglers_own_and_begin_as_integer_zeros(self) -> None:
        self.assertEqual(self.juggler(), dict.fromkeys(JUGGLER_SERVER | JUGGLER_BROKER, 0))
        self.assertEqual({type(value) for value in self.juggler().values()}, {int})

    def test_messages_are_counted_together_by_direction_and_by_type(self) -> None:
        self.endpoint.messages_read.update({juggler.CALL: 3, juggler.PUB: 2})
        self.endpoint.messages_written.update({juggler.ACK: 4, juggler.RES: 1})
        counts = self.juggler()
        self.assertEqual((counts["Msgs"], counts["MsgsRead"], counts["MsgsWrite"]), (10, 5, 5))
        self.assertEqual((counts["MsgsCALL"], counts["MsgsACK"], counts["MsgsEVNT"]), (3, 4, 0))


class CommandLineTests(SynchronousTestCase):
    def test_a_password_is_not_shown(self) -> None:
        self.assertEqual(
            shown_command_line(
                [
                    *("twistd", "--nodaemon", "peloton", "--listen", "tcp:80:interface=::1"),
                    *("--broker", "redis://user:s3cret@host:6379/0"),
                    "--broker=rediss://:s3cret@host",
                ]
            ),
            [
                *("twistd", "--nodaemon", "peloton", "--listen", "tcp:80:interface=::1"),
                *("--broker", "redis://***@host:6379/0"),
                "--broker=rediss://***@host",
            ],
        )

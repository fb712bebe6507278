import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.ops import debug_vars
from pelotontx.ops.debug_vars import DebugVars
from pelotontx.ops.metrics import Histogram, Metrics
from pelotontx.ops.stalls import INTERVAL_S, StallMonitor


def page_of(metrics: Metrics) -> str:
    page: bytes = Deferred.fromCoroutine(metrics.page()).result
    return page.decode()


def families(metrics: Metrics) -> dict[str, Any]:
    """The families of a page by name, as Prometheus' own parser reads them."""
    page = page_of(metrics)
    return {family.name: family for family in text_string_to_metric_families(page)}


class HistogramTests(SynchronousTestCase):
    def test_a_bound_belongs_to_its_own_bucket(self) -> None:
        histogram = Histogram((1, 2.5))
        for value in (0, 1, 1.1, 2.5, 2.6, 1e9):
            histogram.observe(value)
        self.assertEqual(histogram.buckets(), [(1, 2), (2.5, 4), (float("inf"), 6)])
        self.assertAlmostEqual(histogram.sum, 7.2 + 1e9)

    def test_without_observations_every_bucket_is_there_and_zero(self) -> None:
        self.assertEqual(Histogram((1,)).buckets(), [(1, 0), (float("inf"), 0)])


class MetricsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = Metrics(Clock())

    def test_values_are_read_at_each_scrape(self) -> None:
        value = [1.0]
        self.metrics.gauge("things", "How many.", lambda: value[0])
        self.metrics.counter("done", "So far.", lambda: 3)
        page = page_of(self.metrics)
        self.assertIn("peloton_things 1.0\n", page)
        self.assertIn("peloton_done_total 3.0\n", page)
        self.assertIn("process_open_fds", page)
        value[0] = 5
        self.assertIn("peloton_things 5.0\n", page_of(self.metrics))

    def test_each_combination_of_labels_is_a_sample(self) -> None:
        self.metrics.counters("sent", "By type.", ["type"], lambda: {("A",): 2, ("B",): 0})
        self.metrics.gauges("up", "By two.", ["a", "b"], lambda: {("1", 'q"\n\\'): 1})
        seen = families(self.metrics)
        self.assertEqual(
            [(sample.labels, sample.value) for sample in seen["peloton_sent"].samples],
            [({"type": "A"}, 2), ({"type": "B"}, 0)],
        )
        (sample,) = seen["peloton_up"].samples
        self.assertEqual(sample.labels, {"a": "1", "b": 'q"\n\\'})

    def test_a_histogram_has_cumulated_buckets_sum_and_count(self) -> None:
        histogram = Histogram((0.5, 10_000))
        self.metrics.histogram("wait_seconds", "How long.", histogram)
        histogram.observe(0.25)
        histogram.observe(20_000)
        family = families(self.metrics)["peloton_wait_seconds"]
        self.assertEqual(family.type, "histogram")
        self.assertEqual(
            [(sample.name[20:], sample.labels, sample.value) for sample in family.samples],
            [
                ("_bucket", {"le": "0.5"}, 1),
                ("_bucket", {"le": "10000.0"}, 1),
                ("_bucket", {"le": "+Inf"}, 2),
                ("_count", {}, 2),
                ("_sum", {}, 20_000.25),
            ],
        )


class StallTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.monitor = StallMonitor(self.clock)

    def test_a_reactor_in_time_shows_no_stall(self) -> None:
        self.monitor.start()
        self.clock.pump([INTERVAL_S] * 10)
        self.assertEqual(self.monitor.lateness.buckets()[0][1], 10)
        self.assertLess(self.monitor.longest_s, 1e-9)

    def test_a_stall_is_seen_and_the_longest_is_kept(self) -> None:
        self.monitor.start()
        self.clock.advance(INTERVAL_S + 0.3)
        self.clock.advance(INTERVAL_S + 0.06)
        self.assertAlmostEqual(self.monitor.longest_s, 0.3)
        self.assertAlmostEqual(self.monitor.lateness.sum, 0.36)
        self.assertEqual(dict(self.monitor.lateness.buckets())[0.1], 1)

    def test_after_a_stop_nothing_is_left_in_the_reactor(self) -> None:
        self.monitor.start()
        self.clock.advance(INTERVAL_S)
        self.monitor.stop()
        self.monitor.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DebugVarsTests(SynchronousTestCase):
    def test_the_page_is_one_object_in_the_order_of_names(self) -> None:
        variables = DebugVars(["twistd", "peloton"])
        counts = {"b": 1, "a": 0}
        variables.add("juggler", lambda: counts)
        seen = json.loads(json.dumps(variables.read()))
        self.assertEqual(list(seen), ["cmdline", "juggler", "memstats"])
        self.assertEqual(seen["cmdline"], ["twistd", "peloton"])
        self.assertEqual(list(seen["juggler"].items()), [("a", 0), ("b", 1)])
        counts["a"] = 7
        self.assertEqual(variables.read()["juggler"]["a"], 7)

    def test_memory_is_told_in_whole_bytes(self) -> None:
        memory = debug_vars.memory()
        self.assertEqual({type(value) for value in memory.values()}, {int})
        self.assertGreater(memory["Alloc"], 1024 * 1024)
        self.assertGreaterEqual(memory["Sys"], memory["Alloc"])
        self.assertGreater(memory["HeapObjects"], 1000)


class LookTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics(self.clock)
        self.asked: list[Deferred[None]] = []
        self.metrics.before(self.look)

    def look(self) -> Deferred[None]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_a_page_waits_for_what_has_to_be_found_out(self) -> None:
        page = Deferred.fromCoroutine(self.metrics.page())
        self.assertNoResult(page)
        self.asked[0].callback(None)
        self.assertIn(b"process_", self.successResultOf(page))

    def test_all_is_found_out_at_the_same_time(self) -> None:
        self.metrics.before(self.look)
        page = Deferred.fromCoroutine(self.metrics.page())
        self.assertEqual(len(self.asked), 2)
        self.clock.advance(1)
        self.successResultOf(page)

    def test_it_does_not_wait_for_ever(self) -> None:
        page = Deferred.fromCoroutine(self.metrics.page())
        self.clock.advance(1)
        self.assertIn(b"process_", self.successResultOf(page))

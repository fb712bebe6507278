"""Metrics in Prometheus' text format.

Hot paths count in plain attributes and in `Histogram`; both are read when somebody scrapes.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from pelotontx.web import App, Request, Response

_LOOK_TIMEOUT_S: Final = 1.0
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labelled: TypeAlias = Mapping[tuple[str, ...], float]
"""A value for each combination of labels, in the order in which the labels were named."""


class Histogram:
    """How many observations are at most as large as each bound, and their sum.

    Args:
        bounds: rising; one more, infinity, is added.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one observation; on hot paths: one search and two additions."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def sum(self) -> float:
        """Of all observations."""
        return self._sum

    def buckets(self) -> list[tuple[float, int]]:
        """Each bound, and how many observations are not past it."""
        return list(zip(self._bounds, accumulate(self._counts), strict=True))


class Metrics(Collector):
    """Values that are read at each scrape; every name gets the prefix ``peloton_``.

    Args:
        clock: for timeouts.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._looks: list[Callable[[], Deferred[None]]] = []
        self._collectors: list[Callable[[], Metric]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A value that goes up and down."""
        self.gauges(name, help, (), lambda: {(): read()})

    def gauges(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Labelled]
    ) -> None:
        """A gauge for each combination of labels."""
        self._add(lambda: GaugeMetricFamily(f"peloton_{name}", help, labels=labels), read)

    def counter(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A value that only grows; its name ends in ``_total`` on the page."""
        self.counters(name, help, (), lambda: {(): read()})

    def counters(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Labelled]
    ) -> None:
        """A counter for each combination of labels; `read` tells of zeros too."""
        self._add(lambda: CounterMetricFamily(f"peloton_{name}", help, labels=labels), read)

    def _add(
        self,
        family: Callable[[], GaugeMetricFamily | CounterMetricFamily],
        read: Callable[[], Labelled],
    ) -> None:
        def collect() -> Metric:
            collected = family()
            for labels, value in read().items():
                collected.add_metric(labels, value)
            return collected

        self._collectors.append(collect)

    def histogram(self, name: str, help: str, histogram: Histogram) -> None:
        """Observations by size."""

        def collect() -> Metric:
            buckets = [(_shown(bound), count) for bound, count in histogram.buckets()]
            return HistogramMetricFamily(f"peloton_{name}", help, buckets, histogram.sum)

        self._collectors.append(collect)

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self._collect()

    def _collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield collector()

    def before(self, look: Callable[[], Deferred[None]]) -> None:
        """Has `look` find something out before each page; a second at most is waited for all."""
        self._looks.append(look)

    async def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        looking = [
            look().addTimeout(_LOOK_TIMEOUT_S, self._clock).addErrback(_not_in_time)
            for look in self._looks
        ]
        await gatherResults(looking, consumeErrors=True)
        return generate_latest(self._registry)


def _not_in_time(failure: Failure) -> None:
    """Then the page has what was found out before."""
    failure.trap(TimeoutError)


def _shown(bound: float) -> str:
    """A bound as Prometheus wants it."""
    return "+Inf" if bound == math.inf else repr(float(bound))


def routes(path: str, metrics: Metrics) -> App:
    """``GET path``: what Prometheus scrapes."""
    app = App()

    @app.get(f"^{re.escape(path)}$")
    async def show(request: Request) -> Response:
        return Response(
            200, await metrics.page(), {"Cache-Control": "no-store"}, content_type=_CONTENT_TYPE
        )

    return app

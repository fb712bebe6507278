"""Metrics in Prometheus' text format.

Hot paths count in plain attributes; they are read when somebody scrapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pelotontx.web.app import App, Request, Response

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """Values that are read at each scrape; every name gets the prefix ``peloton_``."""

    def __init__(self) -> None:
        self._collectors: list[Callable[[], Metric]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A value that goes up and down."""

        def collect() -> Metric:
            return GaugeMetricFamily(f"peloton_{name}", help, value=read())

        self._collectors.append(collect)

    def counter(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A value that only grows; its name ends in ``_total`` on the page."""

        def collect() -> Metric:
            return CounterMetricFamily(f"peloton_{name}", help, value=read())

        self._collectors.append(collect)

    def counters(
        self, name: str, help: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """A counter for each value of one label."""

        def collect() -> Metric:
            family = CounterMetricFamily(f"peloton_{name}", help, labels=[label])
            for value, count in read().items():
                family.add_metric([value], count)
            return family

        self._collectors.append(collect)

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self._collect()

    def _collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield collector()

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


def routes(path: str, metrics: Metrics) -> App:
    """``GET path``: what Prometheus scrapes."""
    app = App()

    @app.get(f"^{re.escape(path)}$")
    def show(request: Request) -> Response:
        return Response(200, metrics.page(), content_type=_CONTENT_TYPE)

    return app

"""What the server counted meanwhile: its metrics before and after, and their difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from treq.client import HTTPClient
from treq.content import collect
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.web.client import Agent, RequestTransmissionFailed, ResponseFailed
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers

_TIMEOUT_S: Final = 5.0
# A page of metrics has some kilobytes; what is longer is none.
_LIMIT_BYTES: Final = 4 * 1024 * 1024
_PATHS: Final = ("/metrics", "/debug/vars")
# Go's: about the process, not about what it did for us.
_NOT_OURS: Final = ("memstats.", "cmdline")
_PREFIX: Final = "peloton_"
# No connection, no answer, an answer that is none, not in time. ValueError: another status, a page
# that is neither text nor JSON, an unusable URL.
_FAILURES: Final = (
    ConnectError,
    DNSLookupError,
    SchemeNotSupported,
    ResponseFailed,
    RequestTransmissionFailed,
    TimeoutError,
    CancelledError,
    ValueError,
)


def candidates(websocket_url: str) -> list[str]:
    """Where a server usually has its metrics."""
    url = urlsplit(websocket_url)
    scheme = "https" if url.scheme.lower() == "wss" else "http"
    return [urlunsplit((scheme, url.netloc, path, "", "")) for path in _PATHS]


async def fetch(reactor: Any, urls: Sequence[str]) -> tuple[str, dict[str, float]] | None:
    """The first URL whose page has counters, and these; None when there is none.

    Whatever goes wrong means that there are no metrics: they are an extra.
    """
    for url in urls:
        reading = Deferred.fromCoroutine(_page(reactor, url))
        try:
            page = await reading.addTimeout(_TIMEOUT_S, reactor)
            return url, counters(page.decode())
        except _FAILURES:
            continue
    return None


async def _page(reactor: Any, url: str) -> bytes:
    client = HTTPClient(Agent(reactor, connectTimeout=_TIMEOUT_S))
    response = await client.get(url, headers=Headers({"Connection": ["close"]}))
    pieces: list[bytes] = []

    def collected(piece: bytes) -> None:
        pieces.append(piece)
        if sum(map(len, pieces)) > _LIMIT_BYTES:
            raise ValueError("too long")

    await collect(response, collected)
    if response.code != 200:
        raise ValueError(f"status {response.code}")
    return b"".join(pieces)


def counters(page: str) -> dict[str, float]:
    """The numbers that only grow on a page of Prometheus' text format or of Go's expvar.

    Raises:
        ValueError: it is neither.
    """
    if page.lstrip().startswith("{"):
        return dict(_numbers("", msgspec.json.decode(page)))
    found = {}
    for family in text_string_to_metric_families(page):
        if family.type != "counter":
            continue
        for sample in family.samples:
            if sample.name.endswith("_total"):
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
                found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in decoded JSON, by its keys joined with dots."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{path}.{key}" if path else str(key)
            if not name.startswith(_NOT_OURS):
                yield from _numbers(name, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What has changed, by name."""
    changes = {name: value - before.get(name, 0) for name, value in sorted(after.items())}
    return {name: change for name, change in changes.items() if change}

"""The end of a run: figures as one dict, what is wrong with them, and both for people.

`summary` gives what ``--json`` writes; `render` reads nothing but that. Times are milliseconds,
rates are per second:

    {"mode": "calls" | "events", "url", "uri", "clients", "publishers", "channels", "pace",
     "timeout_ms", "payload_bytes", "seconds", "interrupted",
     "counts": {...},            see ledger.Counts and events.EventCounts
     "rate": results (events) a second, "measured": results whose latency is known
     "latency_ms": {"min", "mean", "p50", "p90", "p99", "p99_9", "max"} | null,
     "histogram": [{"from_ms", "to_ms", "count"}],
     "refusals": [{"code", "message", "count"}],
     "disconnects": [{"reason", "count"}],
     "first_error": text of the first result that was an error, "" for none,
     "server": {metric: change} | null,
     "tester": {"cpu_share": of one core, "lag_ms": most that a call was sent after it was due},
     "problems": [text], "ok": bool}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pelotontx.cli.load.driver import Driver
from pelotontx.cli.load.histogram import Histogram
from pelotontx.cli.load.options import Plan
from pelotontx.cli.texts import printable

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
_BAR: Final = 40
_INDENT: Final = "  "
# Past these the figures may be ours more than the server's.
_BUSY: Final = 0.9
_LAG_MS: Final = 50.0

_LABELS: Final = {
    "sent": "sent",
    "acks": "ACKed",
    "refused": "refused (NACK)",
    "results": "results",
    "expected": "events expected",
    "received": "events received",
    "failed": "of them errors",
    "early": "of them before ACK",
    "expired": "expired",
    "lost": "lost",
    "missing": "missing",
    "late": "late",
    "duplicates": "duplicates",
    "reordered": "out of order",
    "strays": "strays",
    "unacked": "never ACKed",
    "unfinished": "unfinished",
}
# Shown though they are 0: what a reader looks for.
_ALWAYS: Final = ("sent", "acks", "refused", "results", "expected", "received", "expired", "lost")

_PROBLEMS: Final = {
    "lost": "lost",
    "expired": "expired",
    "missing": "missing",
    "duplicates": "answered or delivered twice",
    "reordered": "out of order",
    "strays": "answers to what was never sent",
    "unacked": "results never ACKed",
}

_HINTS: Final = {
    403: "the server does not allow this: see the Juggler-Allowed-Messages header and its hooks",
    429: "raise rpc.message_rate (0: any number) or rpc.calls_limit of the server, or send less",
    500: "the server's broker is away, or its broker.call_cap or broker.result_cap is reached",
    503: "the server was stopping",
}


def summary(driver: Driver, server: Mapping[str, float] | None) -> dict[str, Any]:
    """All figures of a run; see the top of this module.

    Args:
        driver: the run, at its end.
        server: what the server's metrics changed by.
    """
    plan = driver.plan
    book = driver.calls or driver.events
    assert book is not None
    latencies = book.latencies
    seconds = max(0.0, book.last_result_s - book.measures_from_s)
    counts = book.counts.as_dict()
    problems = _problems(counts, driver.disconnects.total(), plan)
    return {
        **_what(plan),
        "seconds": round(seconds, 3),
        "interrupted": driver.is_interrupted,
        "counts": counts,
        "measured": latencies.count,
        "rate": round(latencies.count / seconds, 1) if seconds > 0 else 0.0,
        "latency_ms": _latency_ms(latencies),
        "histogram": [
            {"from_ms": from_s * 1000, "to_ms": to_s * 1000, "count": count}
            for from_s, to_s, count in latencies.rows()
        ],
        "refusals": [
            {"code": code, "message": text, "count": count}
            for code, text, count in book.refusals.most_common()
        ],
        "disconnects": [
            {"reason": reason, "count": count} for reason, count in driver.disconnects.most_common()
        ],
        "first_error": driver.calls.first_error if driver.calls else "",
        "server": None if server is None else dict(server),
        "tester": {
            "cpu_share": round(driver.cpu_share, 3),
            "lag_ms": round(driver.lag_s * 1000, 3),
        },
        "problems": problems,
        "ok": not problems,
    }


def _what(plan: Plan) -> dict[str, Any]:
    return {
        "mode": "events" if plan.is_pubsub else "calls",
        "url": plan.url,
        "uri": plan.uri,
        "clients": plan.clients,
        "publishers": plan.publishers,
        "channels": plan.channels if plan.is_pubsub else 0,
        "pace": _pace(plan),
        "timeout_ms": plan.timeout_s * 1000,
        "payload_bytes": len(plan.args),
    }


def _pace(plan: Plan) -> str:
    if plan.interval_s is None:
        return f"{plan.in_flight} in flight each"
    return f"{1 / plan.interval_s:,.4g} a second each"


def _latency_ms(latencies: Histogram) -> dict[str, float] | None:
    if not latencies.count:
        return None
    values = {
        "min": latencies.least_s,
        "mean": latencies.mean_s,
        **{name: latencies.quantile_s(q) for name, q in _QUANTILES.items()},
        "max": latencies.most_s,
    }
    return {name: round(seconds * 1000, 3) for name, seconds in values.items()}


def _problems(counts: Mapping[str, int], disconnects: int, plan: Plan) -> list[str]:
    problems = [
        f"{counts[name]:,} {text}"
        for name, text in _PROBLEMS.items()
        if counts.get(name) and not (name == "expired" and plan.allows_expired)
    ]
    if not counts.get("results", counts.get("received")):
        problems.append("nothing came back")
    elif counts.get("failed") == counts.get("results", 0):
        problems.append("every result was an error")
    if disconnects:
        problems.append(f"{_many(disconnects, 'connection')} lost")
    return problems


def render(figures: Mapping[str, Any]) -> str:
    """The report for a terminal: a table, a histogram, and what to think of them."""
    blocks = [
        [_title(figures)],
        list(_counts(figures)),
        list(_latency(figures)),
        list(_histogram(figures["histogram"])),
        list(_server(figures)),
        list(_remarks(figures)),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _title(figures: Mapping[str, Any]) -> str:
    who = _many(figures["clients"], "client")
    if figures["mode"] == "events":
        who = f"{_many(figures['publishers'], 'publisher')}, "
        who += f"{_many(figures['clients'], 'subscriber')} of "
        who += _many(figures["channels"], "channel")
    return (
        f"{figures['uri']} at {figures['url']}\n{who}, {figures['pace']}, "
        f"{figures['payload_bytes']:,} B payload, timeout {_ms(figures['timeout_ms'])}"
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _counts(figures: Mapping[str, Any]) -> Iterable[str]:
    noun = "events" if figures["mode"] == "events" else "results"
    yield _row(f"{noun}/s", f"{figures['rate']:,.1f}", f"over {figures['seconds']:,.1f} s")
    for name, label in _LABELS.items():
        count = figures["counts"].get(name)
        if count or (count == 0 and name in _ALWAYS):
            yield _row(label, f"{count:,}", "")
        if name == "refused":
            for item in figures["refusals"]:
                text = f"{item['count']:,} with {item['code']} {item['message']}"
                yield f"{_INDENT * 2}{printable(text)}"


def _row(label: str, value: str, remark: str) -> str:
    return f"{_INDENT}{label:<20}{value:>14}  {remark}".rstrip()


def _latency(figures: Mapping[str, Any]) -> Iterable[str]:
    latency = figures["latency_ms"]
    if latency is None:
        return
    names = [name.replace("_", ".") for name in latency]
    cells = [_ms(value) for value in latency.values()]
    widths = [max(map(len, pair)) for pair in zip(names, cells, strict=True)]
    for kind, row in (("latency", names), ("", cells)):
        columns = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{_INDENT}{kind:<10}{columns}"


def _histogram(rows: list[Mapping[str, Any]]) -> Iterable[str]:
    total = sum(row["count"] for row in rows)
    most = max((row["count"] for row in rows), default=0)
    for row in rows:
        count = row["count"]
        bar = "#" * max(round(count / most * _BAR), 1 if count else 0)
        span = f"{_ms(row['from_ms']):>8} to {_ms(row['to_ms']):>8}"
        yield f"{_INDENT}{span} |{bar:<{_BAR}}| {count / total:6.1%} {count:>12,}"


def _server(figures: Mapping[str, Any]) -> Iterable[str]:
    server = figures["server"]
    if server is None:
        return
    yield f"{_INDENT}the server counted meanwhile"
    cpu_s = server.get("process_cpu_seconds")
    for name, change in server.items():
        if name != "process_cpu_seconds":
            yield f"{_INDENT * 2}{printable(name):<44}{change:>12,.10g}"
    if cpu_s:
        counts = figures["counts"]
        done = counts.get("results") or counts.get("received")
        each = f" ({cpu_s / done * 1e6:,.0f} µs each)" if done else ""
        yield f"{_INDENT * 2}{'CPU time':<44}{cpu_s:>10,.2f} s{each}"


def _remarks(figures: Mapping[str, Any]) -> Iterable[str]:
    for item in figures["disconnects"]:
        yield printable(f"lost {_many(item['count'], 'connection')}: {item['reason']}")
    if figures["first_error"]:
        yield printable(f"first error: {figures['first_error']}")
    for code in sorted({item["code"] for item in figures["refusals"]} & _HINTS.keys()):
        yield f"hint: NACK {code}: {_HINTS[code]}"
    if figures["counts"].get("expired"):
        yield "hint: expired calls waited for a callee: is one there, is its concurrency enough?"
    tester = figures["tester"]
    if tester["cpu_share"] > _BUSY or tester["lag_ms"] > _LAG_MS:
        yield (
            f"caution: this program needed {tester['cpu_share']:.0%} of a core and sent up to "
            f"{_ms(tester['lag_ms'])} late: some of the latency may be its own"
        )
    if figures["interrupted"]:
        yield "interrupted"
    yield "FAILED: " + ", ".join(figures["problems"]) if figures["problems"] else "ok"


def _ms(milliseconds: float) -> str:
    """Three digits and a unit that fits."""
    for limit, factor, unit in ((1.0, 1000, "µs"), (1000.0, 1, "ms")):
        if milliseconds < limit:
            return f"{milliseconds * factor:.3g} {unit}"
    return f"{milliseconds / 1000:,.{3 if milliseconds < 10_000 else 1}f} s"

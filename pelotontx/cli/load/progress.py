"""What is shown while a run goes on: one line a second, on a terminal always the same one."""

from __future__ import annotations

from typing import Final, TextIO

from pelotontx.cli.load.driver import Driver

_INTERVAL_S: Final = 1.0
_CLEAR: Final = "\r\x1b[K"


class Progress:
    """Writes lines about a `Driver`.

    Args:
        stream: where to; a terminal has its line rewritten. When nobody reads it any more, nothing.
        seconds: the clock that decides when a second is over.
    """

    def __init__(self, stream: TextIO, seconds: float) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._is_read = True
        self._last_s = seconds
        self._done = 0

    def show(self, driver: Driver, now_s: float) -> None:
        """Writes a line when a second is over since the last one."""
        elapsed_s = now_s - self._last_s
        if elapsed_s < _INTERVAL_S:
            return
        self._last_s = now_s
        line = self._line(driver, now_s, elapsed_s)
        self._write(f"{_CLEAR}{line}" if self._is_terminal else f"{line}\n")

    def end(self) -> None:
        """Leaves the terminal's line empty."""
        if self._is_terminal:
            self._write(_CLEAR)

    def _line(self, driver: Driver, now_s: float, elapsed_s: float) -> str:
        if driver.started_s is None:
            return f"connecting: {driver.opened:,} of {driver.connections:,}"
        book = driver.calls or driver.events
        assert book is not None
        done = driver.calls.counts.results if driver.calls else book.counts.as_dict()["received"]
        rate, self._done = (done - self._done) / elapsed_s, done
        parts = [f"{now_s - driver.started_s:5.0f} s", f"{rate:,.0f}/s"]
        if now_s < book.measures_from_s:
            parts.append("warming up")
        elif book.latencies.count:
            p50_ms = book.latencies.quantile_s(0.5) * 1000
            p99_ms = book.latencies.quantile_s(0.99) * 1000
            parts.append(f"p50 {p50_ms:.3g} ms  p99 {p99_ms:.3g} ms")
        parts.append(f"in flight {driver.in_flight:,}")
        counts = book.counts.as_dict()
        for name in ("refused", "expired", "lost", "missing"):
            if counts.get(name):
                parts.append(f"{name} {counts[name]:,}")
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        if not self._is_read:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._is_read = False

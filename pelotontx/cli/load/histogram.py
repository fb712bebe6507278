"""Latencies in bounded memory: buckets whose width grows with the value.

A value is kept to 1/128 of itself (0.8 %) or to 1 µs, whichever is coarser; minimum, maximum and
mean are exact. A counter for each of 64 steps of every power of two makes 1,800 counters for
anything up to an hour, however many values there are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Final

_MICROSECONDS: Final = 1_000_000
# Steps of one power of two; values below twice as many microseconds have a counter each.
_STEPS: Final = 64
_STEP_BITS: Final = 7
# One hour; what takes longer is counted there, and its exact maximum is known all the same.
_LIMIT_US: Final = 3600 * _MICROSECONDS

# What a reader takes in at a glance.
_ROWS: Final = 16
# Steps of a decade, about evenly spaced on a logarithmic scale; the finest first.
_SERIES: Final = (
    (
        *(1, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2, 2.2, 2.4, 2.7, 3),
        *(3.3, 3.6, 3.9, 4.3, 4.7, 5.1, 5.6, 6.2, 6.8, 7.5, 8.2, 9.1),
    ),
    (1, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2),
    (1, 1.5, 2.2, 3.3, 4.7, 6.8),
    (1, 2, 5),
)
_BOUNDS_S: Final = tuple(
    (0.0, *(step * 10**decade / _MICROSECONDS for decade in range(13) for step in series))
    for series in _SERIES
)


class Histogram:
    """Times in seconds, recorded one by one.

    Attributes:
        count: how many there are.
        least_s, most_s: the extremes, exact; 0.0 of nothing.
    """

    __slots__ = ("_counts", "_sum_s", "count", "least_s", "most_s")

    def __init__(self) -> None:
        self._counts = [0] * (_index(_LIMIT_US) + 1)
        self._sum_s = 0.0
        self.count = 0
        self.least_s = 0.0
        self.most_s = 0.0

    def record(self, seconds: float) -> None:
        """Adds one time; a negative one counts as 0."""
        microseconds = int(seconds * _MICROSECONDS)
        # `_index`, written out: this runs for every answer.
        if microseconds < 2 * _STEPS:
            self._counts[microseconds if microseconds > 0 else 0] += 1
        elif microseconds < _LIMIT_US:
            shift = microseconds.bit_length() - _STEP_BITS
            self._counts[(shift << 6) + (microseconds >> shift)] += 1
        else:
            self._counts[-1] += 1
        if seconds > self.most_s:
            self.most_s = seconds
        if seconds < self.least_s or self.count == 0:
            self.least_s = seconds
        self.count += 1
        self._sum_s += seconds

    @property
    def mean_s(self) -> float:
        """The mean, exact; 0.0 of nothing."""
        return self._sum_s / self.count if self.count else 0.0

    def quantile_s(self, q: float) -> float:
        """The least recorded time that a share `q` (0 to 1) of all does not exceed; 0.0 of nothing.

        The middle of its bucket, but never outside the extremes.
        """
        wanted = max(1, math.ceil(q * self.count))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return min(max(_middle_s(index), self.least_s), self.most_s)
        return self.most_s

    def rows(self) -> Iterator[tuple[float, float, int]]:
        """From, to and count for ranges that grow with the value, by preferred numbers.

        As fine as `_ROWS` rows allow, from the first range that holds something to the last, those
        without anything between them included.
        """
        values = [
            (min(max(_middle_s(index), self.least_s), self.most_s), count)
            for index, count in enumerate(self._counts)
            if count
        ]
        if not values:
            return
        for bounds in _BOUNDS_S:
            rows: Counter[int] = Counter()
            for seconds, count in values:
                rows[min(max(bisect_right(bounds, seconds), 1), len(bounds) - 1)] += count
            if max(rows) - min(rows) < _ROWS:
                break
        for row in range(min(rows), max(rows) + 1):
            yield bounds[row - 1], bounds[row], rows[row]


def _index(microseconds: int) -> int:
    """The bucket of a value."""
    shift = max(0, microseconds.bit_length() - _STEP_BITS)
    return shift * _STEPS + (microseconds >> shift)


def _middle_s(index: int) -> float:
    """The middle of a bucket's values."""
    if index < 2 * _STEPS:
        return (index + 0.5) / _MICROSECONDS
    shift = index // _STEPS - 1
    return ((index - shift * _STEPS + 0.5) * (1 << shift)) / _MICROSECONDS

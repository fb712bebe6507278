"""What an HTTP/2 peer may send that costs us something and is good for nothing; for `net.http2`.

The protocol lets a peer send pings, settings, empty frames and resets at no cost to itself. Here
they are counted against those frames that carry something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from h2.errors import ErrorCodes

from pelotontx.wire.http2 import DATA, HEADERS, BrokenConnection, Frame

#: Frames that carry nothing, in `_COUNTED_S`, beyond `_WORTH` for each that does.
_STRAY_FRAMES: Final = 1000

#: A request needs no more than this: window updates for a stream and the connection.
_WORTH: Final = 2

#: Streams that are begun and reset in `_COUNTED_S` (CVE-2023-44487): a browser that leaves two
#: pages full of requests stays below.
_RESETS: Final = 200

_COUNTED_S: Final = 10.0

#: A DATA frame of ours under this size, with more to follow, is a peer that dribbles its window.
_DRIBBLE_BYTES: Final = 256


class Flood:
    """Counts for one connection.

    Args:
        now: the time in seconds.
    """

    __slots__ = ("_now", "_resets", "_since_s", "_strays")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since_s = now()
        self._strays = 0
        self._resets = 0

    def count(self, frame: Frame) -> None:
        """A frame came.

        Raises:
            BrokenConnection: it was one too many.
        """
        if frame.kind == HEADERS or (frame.kind == DATA and frame.size):
            self._strays = max(0, self._strays - _WORTH)
            return
        self._strays += 1
        if self._strays > _STRAY_FRAMES:
            self._look()

    def count_reset(self) -> None:
        """A stream was reset before it was done, by the peer or for what it did; as `count`."""
        self._resets += 1
        if self._resets > _RESETS:
            self._look()

    def forgive(self, size: int, *, is_whole: bool) -> None:
        """Data was sent, for which window updates may come."""
        if is_whole or size >= _DRIBBLE_BYTES:
            self._strays = max(0, self._strays - _WORTH)

    def _look(self) -> None:
        """A bound was passed: since when has it been counted?"""
        now_s = self._now()
        if now_s - self._since_s < _COUNTED_S:
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames for nothing")
        self._since_s = now_s
        self._strays = self._resets = 0

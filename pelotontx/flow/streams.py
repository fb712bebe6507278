"""Values over time: `Stream`, a bounded queue with an end, and `Cell`, a value that is observed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pelotontx.errors import StreamClosed

T = TypeVar("T")


class Stream(Generic[T]):
    """A bounded queue between those who `put` and those who read it with ``async for``.

    Each item goes to one reader, in order. When the stream is full, `put` waits and `offer` says
    False: nothing is ever dropped.

    Args:
        limit: most items that nobody has read yet.

    Attributes:
        is_closed: nothing more can be put; what was put before can still be read.
    """

    def __init__(self, limit: int = 64) -> None:
        if limit < 1:
            raise ValueError("a stream holds one item at least")
        self._limit = limit
        self._items: deque[T] = deque()
        self._readers: deque[Deferred[None]] = deque()
        self._writers: deque[Deferred[None]] = deque()
        self._error: Exception | None = None
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Appends `item` if there is room, and says whether there was.

        Raises:
            StreamClosed: it was closed.
        """
        if self.is_closed:
            raise StreamClosed
        if len(self._items) >= self._limit:
            return False
        self._items.append(item)
        _wake(self._readers)
        return True

    async def put(self, item: T) -> None:
        """Appends `item`, and before that waits for room. Cancelled, it has not appended it.

        Raises:
            StreamClosed: it was closed, perhaps while this waited.
        """
        while not self.offer(item):
            await _wait(self._writers)

    def close(self, error: Exception | None = None) -> None:
        """Ends the stream: readers get what is left, then the end, or `error` if there is one.

        Closing again changes nothing. A reader that will not read on closes it too, so that
        nobody waits for room.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._error = error
        for waiting in (self._readers, self._writers):
            while waiting:
                _wake(waiting)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        """The next item; cancelled, it has taken none."""
        while not self._items:
            if self.is_closed:
                raise self._error or StopAsyncIteration
            await _wait(self._readers)
        item = self._items.popleft()
        _wake(self._writers)
        return item


async def _wait(waiting: deque[Deferred[None]]) -> None:
    turn: Deferred[None] = Deferred(waiting.remove)
    waiting.append(turn)
    await turn


def _wake(waiting: deque[Deferred[None]]) -> None:
    """Runs the first that waits."""
    if waiting:
        waiting.popleft().callback(None)


class Observation(Generic[T]):
    """One observer of a `Cell`."""

    def __init__(self, cell: Cell[T], observer: Callable[[T], object]) -> None:
        self._cell = cell
        self.observer = observer

    def stop(self) -> None:
        """It is not told any more; stopping again changes nothing."""
        self._cell._observations.pop(self, None)


class Cell(Generic[T]):
    """A value, and those who are told whenever it is set.

    Args:
        value: the first one.
    """

    _log = Logger()

    def __init__(self, value: T) -> None:
        self._value = value
        self._observations: dict[Observation[T], None] = {}
        self._version = 0

    def get(self) -> T:
        """The value now."""
        return self._value

    def set(self, value: T) -> None:
        """Changes the value and tells all observers, in the order in which they came.

        An observer that sets it anew has the others told of the newer value only. What one of
        them raises is logged.
        """
        self._value = value
        self._version += 1
        version = self._version
        for observation in tuple(self._observations):
            if self._version != version:
                return
            if observation in self._observations:
                self._tell(observation)

    def observe(self, observer: Callable[[T], object]) -> Observation[T]:
        """Calls ``observer(value)`` at once, and again each time the value is set."""
        observation = Observation(self, observer)
        self._observations[observation] = None
        self._tell(observation)
        return observation

    def _tell(self, observation: Observation[T]) -> None:
        try:
            observation.observer(self._value)
        except Exception:  # the user's code
            self._log.failure("An observer failed")

"""What every integration test ends with: no error was logged, and nothing stays in the reactor."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from tests.support.kinds import KINDS
from tests.support.redis_farm import redis_cluster, sentinel_trio

if TYPE_CHECKING:
    from tests.support.brokers import World

__all__ = ["redis_cluster", "sentinel_trio"]


class LoggedErrors:
    """The errors that were logged during a test."""

    def __init__(self) -> None:
        self._events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if "log_failure" in event or (level is not None and level >= LogLevel.critical):
            self._events.append(event)

    def flush(self, *kinds: type[BaseException]) -> list[BaseException]:
        """The exceptions of these kinds that were logged; they are as they should be."""
        found = [event for event in self._events if isinstance(_exception(event), kinds)]
        self._events = [event for event in self._events if event not in found]
        return [_exception(event) for event in found]

    def flush_text(self, text: str) -> int:
        """How many were logged whose format holds `text`; they are as they should be."""
        before = len(self._events)
        self._events = [e for e in self._events if text not in str(e.get("log_format"))]
        return before - len(self._events)

    def texts(self) -> list[str]:
        """What is left, for a person to read."""
        return [
            f"{event.get('log_namespace')}: {event.get('log_format')}\n"
            + (event["log_failure"].getTraceback() if "log_failure" in event else "")
            for event in self._events
        ]


def _exception(event: LogEvent) -> Any:
    failure = event.get("log_failure")
    return None if failure is None else failure.value


@pytest.fixture(autouse=True)
def logged() -> Iterator[LoggedErrors]:
    """Fails the test on what it logged and did not flush, and on what it left in the reactor."""
    from twisted.internet import reactor  # not before pytest-twisted has chosen one

    errors = LoggedErrors()
    globalLogPublisher.addObserver(errors)
    readers = _readers(reactor)
    yield errors
    gc.collect()  # an unhandled failure in a Deferred shows now
    globalLogPublisher.removeObserver(errors)
    assert not errors.texts(), "\n".join(errors.texts())
    assert [str(call) for call in reactor.getDelayedCalls()] == []  # type: ignore[attr-defined]
    assert {str(reader) for reader in _readers(reactor) - readers} == set()


def _readers(reactor: Any) -> set[Any]:
    """What is read from, apart from the reactor's own pipes."""
    return set(reactor.getReaders()) - set(reactor._internalReaders)


@pytest_twisted.async_yield_fixture(params=KINDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A broker of each kind."""
    async for world in _world(request.param):
        yield world


@pytest_twisted.async_yield_fixture(params=[kind for kind in KINDS if kind != "memory"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Only brokers with a server that can be killed."""
    async for world in _world(request.param):
        yield world


async def _world(kind: str) -> AsyncIterator[World]:
    from twisted.internet import reactor  # as above

    from tests.support.brokers import World

    world = World(reactor, kind)
    await world.start()
    yield world
    await world.stop()

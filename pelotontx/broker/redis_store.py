"""Lists of entries with timeouts on Redis: scripts, and what one reactor turn stores in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pelotontx.errors import BrokerError, BrokerUnavailable, QueueFull
from pelotontx.net.redis.client import RedisClient
from pelotontx.net.redis.connection import Reply
from pelotontx.net.redis.script import Script

_log = Logger(namespace="pelotontx.broker.redis")

# Entries a script: Lua's unpack fails near 8000, and a long script keeps everybody else waiting.
BATCH_LIMIT: Final = 500
# Lists whose lengths can be asked for; clients choose their names, so that they are bounded.
_RECENT_LIMIT: Final = 256
# The least life of a list: twice a call's default, so that entries which a server that knows of no
# expiry has put on the same list are not cut short. Longer, and calls to URIs that nobody serves
# would fill Redis.
LIST_LIFE_MS: Final = 120_000


def packaged_script(name: str) -> Script:
    """The Lua file of that name beside this module."""
    return Script(files(__package__).joinpath(name).read_bytes())


store_script: Final = packaged_script("store.lua")
claim_script: Final = packaged_script("claim.lua")
restore_script: Final = packaged_script("restore.lua")


def broker_error(reply: Reply) -> BrokerError:
    """What a caller is told of an error reply; Redis's own refusals are logged."""
    if isinstance(reply, BrokerError):
        return reply
    _log.warn("Redis refused: {error}", error=reply)
    return BrokerUnavailable(str(reply))


@dataclass(slots=True)
class _Batch:
    """Entries of one turn for one list: columns of equal length, the first two maybe empty."""

    name: str
    timeout_keys: list[str] = field(default_factory=list)
    timeouts_ms: list[int] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    stored: list[Callable[[Any], object]] = field(default_factory=list)


class Store:
    """Stores entries, those of one reactor turn together.

    Args:
        reactor: for the end of the turn.
        client: where.
        cap: by name, how many entries a list may hold; 0 = any number.
    """

    def __init__(
        self, reactor: IReactorTime, client: RedisClient, *, cap: Callable[[str], int]
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._cap = cap
        self._batches: dict[tuple[str, bool], _Batch] = {}
        self._flush_call: IDelayedCall | None = None
        self._recent: dict[str, str] = {}

    def add(
        self,
        name: str,
        list_key: str,
        timeout_key: str,
        timeout_ms: int,
        entry: bytes,
        stored: Callable[[BrokerError | None], object],
    ) -> None:
        """Stores one entry.

        Args:
            name: what the cap goes by, and what a `QueueFull` shows.
            list_key: the list.
            timeout_key: lives as long as the entry is of use; empty: the entry knows by itself.
            timeout_ms: how long that is.
            entry: the entry.
            stored: told once.
        """
        where = (list_key, timeout_key != "")
        batch = self._batches.get(where)
        if batch is None:
            batch = self._batches[where] = _Batch(name)
            self._note(name, list_key)
            if self._flush_call is None:
                self._flush_call = self._reactor.callLater(0, self._flush)
        if timeout_key:
            batch.timeout_keys.append(timeout_key)
            batch.timeouts_ms.append(timeout_ms)
        batch.entries.append(entry)
        batch.stored.append(stored)
        if len(batch.entries) == BATCH_LIMIT:
            del self._batches[where]
            self._send(list_key, batch)

    def _note(self, name: str, list_key: str) -> None:
        """Remembers the lists that were stored to last."""
        self._recent.pop(name, None)
        self._recent[name] = list_key
        if len(self._recent) > _RECENT_LIMIT:
            del self._recent[next(iter(self._recent))]

    def lengths(self) -> Deferred[dict[str, int]]:
        """How many entries each of the lists holds that were stored to last, by name."""
        recent, found = dict(self._recent), dict[str, int]()
        asked: Deferred[dict[str, int]] = Deferred()
        left = len(recent)

        def replied(name: str, reply: Reply) -> None:
            nonlocal left
            left -= 1
            if type(reply) is int:
                found[name] = reply
            if left == 0 and not asked.called:
                asked.callback(found)

        for name, list_key in recent.items():
            self._client.send(partial(replied, name), list_key, "LLEN", list_key)
        return asked if recent else succeed(found)

    def stop(self) -> None:
        """Sends what waits; nothing is left in the reactor."""
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush()

    def _flush(self) -> None:
        self._flush_call = None
        batches, self._batches = self._batches, {}
        for (list_key, _), batch in batches.items():
            self._send(list_key, batch)

    def _send(self, list_key: str, batch: _Batch) -> None:
        self._client.run(
            partial(self._replied, batch),
            store_script,
            (list_key, *batch.timeout_keys),
            self._cap(batch.name),
            LIST_LIFE_MS,
            *batch.timeouts_ms,
            *batch.entries,
        )

    @staticmethod
    def _replied(batch: _Batch, reply: Reply) -> None:
        if type(reply) is int:
            for stored in batch.stored[:reply]:
                stored(None)
            for stored in batch.stored[reply:]:
                stored(QueueFull(batch.name))
        else:
            error = broker_error(reply)
            for stored in batch.stored:
                stored(error)

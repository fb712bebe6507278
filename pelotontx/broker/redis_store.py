"""Lists of entries with timeouts on Redis: scripts, and what one reactor turn stores in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import CallStored
from pelotontx.errors import BrokerError, BrokerUnavailable, QueueFull
from pelotontx.net.redis import Argument, RedisLink, Reply, ResponseError

_log = Logger(namespace="pelotontx.broker.redis")

# Entries a script: Lua's unpack fails near 8000, and a long script keeps everybody else waiting.
BATCH_LIMIT: Final = 500
# The least life of a list: far longer than a call, so that entries which a server that knows of no
# expiry has put on the same list are not cut short.
LIST_LIFE_MS: Final = 600_000


class Script:
    """A Lua script that Redis keeps by its digest."""

    def __init__(self, name: str) -> None:
        self._source = files(__package__).joinpath(name).read_bytes()
        self._digest = sha1(self._source).hexdigest()

    def run(
        self, link: RedisLink, on_reply: Callable[[Reply], object], *arguments: Argument
    ) -> None:
        """Runs it, by its digest where this connection has run it before.

        In case Redis has been made to forget it, it is sent once more.
        """

        def replied(reply: Reply) -> None:
            if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
                link.send(on_reply, "EVAL", self._source, *arguments)
            else:
                on_reply(reply)

        known = link.connection.script_hashes if link.connection is not None else ()
        if self._digest in known:
            link.send(replied, "EVALSHA", self._digest, *arguments)
        else:
            # Not by digest first: a script that is sent again comes after what was sent meanwhile.
            link.send(on_reply, "EVAL", self._source, *arguments)
            if link.connection is not None:
                link.connection.script_hashes.add(self._digest)


store_script: Final = Script("store.lua")
claim_script: Final = Script("claim.lua")
restore_script: Final = Script("restore.lua")


def broker_error(reply: Reply) -> BrokerError:
    """What a caller is told of an error reply; Redis's own refusals are logged."""
    if isinstance(reply, BrokerError):
        return reply
    _log.warn("Redis refused: {error}", error=reply)
    return BrokerUnavailable(str(reply))


@dataclass(slots=True)
class _Batch:
    """Entries of one turn for one list; four columns of equal length."""

    name: str
    timeout_keys: list[str] = field(default_factory=list)
    timeouts_ms: list[int] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    stored: list[CallStored] = field(default_factory=list)


class Store:
    """Stores entries with their timeouts, those of one reactor turn together."""

    def __init__(self, reactor: IReactorTime, link: RedisLink, *, cap: int) -> None:
        self._reactor = reactor
        self._link = link
        self._cap = cap
        self._batches: dict[str, _Batch] = {}
        self._flush_call: IDelayedCall | None = None

    def add(
        self,
        name: str,
        list_key: str,
        timeout_key: str,
        timeout_ms: int,
        entry: bytes,
        stored: CallStored,
    ) -> None:
        """`stored` is told once; `name` is what a `QueueFull` shows."""
        batch = self._batches.get(list_key)
        if batch is None:
            batch = self._batches[list_key] = _Batch(name)
            if self._flush_call is None:
                self._flush_call = self._reactor.callLater(0, self._flush)
        batch.timeout_keys.append(timeout_key)
        batch.timeouts_ms.append(timeout_ms)
        batch.entries.append(entry)
        batch.stored.append(stored)
        if len(batch.entries) == BATCH_LIMIT:
            del self._batches[list_key]
            self._send(list_key, batch)

    def stop(self) -> None:
        """Sends what waits; nothing is left in the reactor."""
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush()

    def _flush(self) -> None:
        self._flush_call = None
        batches, self._batches = self._batches, {}
        for list_key, batch in batches.items():
            self._send(list_key, batch)

    def _send(self, list_key: str, batch: _Batch) -> None:
        store_script.run(
            self._link,
            partial(self._replied, batch),
            1 + len(batch.timeout_keys),
            list_key,
            *batch.timeout_keys,
            self._cap,
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

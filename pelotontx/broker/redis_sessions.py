"""Sessions on Redis: a hash each, in the layout of `pelotontx.wire.session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.defer import Deferred

from pelotontx.broker.redis_store import broker_error, packaged_script
from pelotontx.net.redis.client import RedisClient
from pelotontx.net.redis.connection import Argument, Reply
from pelotontx.net.redis.script import Script
from pelotontx.wire.session import session_key

_load: Final = packaged_script("session_load.lua")
_save: Final = packaged_script("session_save.lua")
_take: Final = packaged_script("session_take.lua")


class RedisSessions:
    """See `pelotontx.broker.interface.SessionStore`; on the connection that the parts share."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def load(
        self, session_id: str, *, life_ms: int, slack_ms: int
    ) -> Deferred[dict[str, bytes] | None]:
        """See `pelotontx.broker.interface.SessionStore`."""
        return self._run(_load, session_id, life_ms, slack_ms).addCallback(_fields)

    def save(
        self,
        session_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
        is_new: bool = False,
    ) -> Deferred[bool]:
        """See `pelotontx.broker.interface.SessionStore`."""
        pairs = [part for pair in changed.items() for part in pair]
        arguments = (int(not is_new), life_ms, len(changed), *pairs, *removed)
        return self._run(_save, session_id, *arguments).addCallback(bool)

    def move(
        self,
        session_id: str,
        new_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
    ) -> Deferred[bool]:
        """See `pelotontx.broker.interface.SessionStore`.

        The two ids lie on different servers of a cluster, so it is two commands. The old id is dead
        with the first one; should the second fail, the session is over.
        """
        return Deferred.fromCoroutine(self._move(session_id, new_id, changed, removed, life_ms))

    async def _move(
        self,
        session_id: str,
        new_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str],
        life_ms: int,
    ) -> bool:
        taken = _fields(await self._run(_take, session_id)) or {}
        fields = {**taken, **changed}
        for name in removed:
            fields.pop(name, None)
        if not fields:
            return False
        return await self.save(new_id, fields, life_ms=life_ms, is_new=True)

    def delete(self, session_id: str) -> Deferred[None]:
        """See `pelotontx.broker.interface.SessionStore`."""
        return self._run(_take, session_id).addCallback(lambda _: None)

    def _run(self, script: Script, session_id: str, *arguments: Argument) -> Deferred[Reply]:
        result: Deferred[Reply] = Deferred()

        def replied(reply: Reply) -> None:
            if result.called:  # cancelled
                return
            if isinstance(reply, Exception):
                result.errback(broker_error(reply))
            else:
                result.callback(reply)

        self._client.run(replied, script, (session_key(session_id),), *arguments)
        return result


def _fields(reply: Reply) -> dict[str, bytes] | None:
    """What HGETALL found; names that are no UTF-8 cannot be ours and are left alone."""
    fields = {}
    for name, value in zip(reply[::2], reply[1::2], strict=True):
        try:
            fields[name.decode()] = value
        except UnicodeDecodeError:
            continue
    return fields or None

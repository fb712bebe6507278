"""Sessions in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pelotontx.errors import BrokerUnavailable

_SWEEP_S: Final = 60.0
#: Some hundred MB of usual sessions. Further ones are refused: those who are logged in stay so.
_SESSIONS_LIMIT: Final = 100_000


@dataclass(slots=True)
class _Stored:
    expires_at_s: float
    fields: dict[str, bytes]


class MemorySessions:
    """See `pelotontx.broker.interface.SessionStore`.

    Args:
        clock: keeps time, and has what is over forgotten.
        limit: sessions that are kept; past it a new one fails with `BrokerUnavailable`.
    """

    def __init__(self, clock: IReactorTime, *, limit: int = _SESSIONS_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._stored: dict[str, _Stored] = {}
        self._sweep_call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._stored)

    def stop(self) -> None:
        """Forgets all."""
        self._stored.clear()
        if self._sweep_call is not None:
            self._sweep_call.cancel()
            self._sweep_call = None

    def load(
        self, session_id: str, *, life_ms: int, slack_ms: int
    ) -> Deferred[dict[str, bytes] | None]:
        """See `pelotontx.broker.interface.SessionStore`."""
        stored = self._find(session_id)
        if stored is None:
            return succeed(None)
        expires_at_s = self._clock.seconds() + life_ms / 1000
        if expires_at_s - stored.expires_at_s > slack_ms / 1000:
            stored.expires_at_s = expires_at_s
        return succeed(dict(stored.fields))

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
        stored = self._find(session_id)
        if stored is None:
            if not is_new:
                return succeed(False)
            if len(self._stored) >= self._limit:
                return fail(BrokerUnavailable("there are too many sessions"))
            stored = _Stored(0.0, {})
        self._write(session_id, stored, changed, removed, life_ms)
        return succeed(True)

    def move(
        self,
        session_id: str,
        new_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
    ) -> Deferred[bool]:
        """See `pelotontx.broker.interface.SessionStore`."""
        stored = self._find(session_id)
        if stored is None:
            if not changed:
                return succeed(False)
            return self.save(new_id, changed, life_ms=life_ms, is_new=True)
        del self._stored[session_id]
        self._write(new_id, stored, changed, removed, life_ms)
        return succeed(new_id in self._stored)

    def delete(self, session_id: str) -> Deferred[None]:
        """See `pelotontx.broker.interface.SessionStore`."""
        self._stored.pop(session_id, None)
        return succeed(None)

    def _find(self, session_id: str) -> _Stored | None:
        stored = self._stored.get(session_id)
        if stored is not None and stored.expires_at_s <= self._clock.seconds():
            del self._stored[session_id]
            return None
        return stored

    def _write(
        self,
        session_id: str,
        stored: _Stored,
        changed: Mapping[str, bytes],
        removed: Sequence[str],
        life_ms: int,
    ) -> None:
        stored.fields.update(changed)
        for name in removed:
            stored.fields.pop(name, None)
        stored.expires_at_s = self._clock.seconds() + life_ms / 1000
        if not stored.fields:
            self._stored.pop(session_id, None)
            return
        self._stored[session_id] = stored
        if self._sweep_call is None:
            self._sweep_call = self._clock.callLater(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Forgets what is over."""
        now_s = self._clock.seconds()
        self._stored = {
            session_id: stored
            for session_id, stored in self._stored.items()
            if stored.expires_at_s > now_s
        }
        self._sweep_call = None
        if self._stored:
            self._sweep_call = self._clock.callLater(_SWEEP_S, self._sweep)

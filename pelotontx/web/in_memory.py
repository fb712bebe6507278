"""What an app asks of its server, without one: sessions and files of forms; for `web.testing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_urlsafe
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed

from pelotontx.web.request import Request
from pelotontx.web.session import Sessions
from pelotontx.web.uploads import DiskSink


class Uploads(DiskSink):
    """Files of forms: in memory, and without threads what handlers ask for."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), memory_bytes=1 << 30)

    def run(self, function: Any) -> Deferred[Any]:
        """Calls it now."""
        return maybeDeferred(function)


class Store:
    """Sessions without an end; see `pelotontx.web.session.Store`."""

    def __init__(self) -> None:
        self._fields: dict[str, dict[str, bytes]] = {}

    def load(self, session_id: str, **_: Any) -> Deferred[dict[str, bytes] | None]:
        """The fields, if there are any."""
        found = self._fields.get(session_id)
        return succeed(None if found is None else dict(found))

    def save(
        self,
        session_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        is_new: bool = False,
        **_: Any,
    ) -> Deferred[bool]:
        """Writes some fields."""
        if not is_new and session_id not in self._fields:
            return succeed(False)
        fields = {**self._fields.pop(session_id, {}), **changed}
        fields = {name: value for name, value in fields.items() if name not in removed}
        if fields:
            self._fields[session_id] = fields
        return succeed(True)

    def move(self, session_id: str, new_id: str, *changes: Any, **_: Any) -> Deferred[bool]:
        """Saves under another id."""
        self._fields[new_id] = self._fields.pop(session_id, {})
        self.save(new_id, *changes)
        return succeed(new_id in self._fields)

    def delete(self, session_id: str) -> Deferred[None]:
        """Ends a session."""
        self._fields.pop(session_id, None)
        return succeed(None)


def request_class() -> type[Request]:
    """Requests of one such server."""
    sessions = Sessions(store=Store(), secrets=[token_urlsafe(32)])
    own = {"__slots__": (), "sessions": sessions, "uploads": Uploads()}
    return type("Request", (Request,), own)

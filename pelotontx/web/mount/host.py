"""What a server offers the applications inside it, and when it starts and stops them."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from pelotontx.net.admission import Admission
from pelotontx.net.websocket import WebSocketLimits
from pelotontx.net.wheel import Wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The server.

    Attributes:
        reactor: everything lives on it.
        wheel: for deadlines.
        websocket_limits: of WebSockets that an application accepts.
        origins: further origins that browsers' WebSockets may come from; ``*`` is all but `null`.
        admission: where WebSockets are counted.
    """

    reactor: Any
    wheel: Wheel
    websocket_limits: WebSocketLimits = field(default_factory=WebSocketLimits)
    origins: tuple[str, ...] = ()
    admission: Admission | None = None


class Mounted:
    """An application under a path; `handle(request)` answers, and is its subclass's.

    The server calls `prepare` once before anything else, `start` before it listens, `drain` when
    it has stopped listening, and `stop` when the last request has been answered.
    """

    def prepare(self, host: Host, name: str) -> None:
        """Takes what the server offers.

        Args:
            host: the server.
            name: what leads here, for errors: ``mount[0].asgi``.

        Raises:
            ConfigError: this application cannot run in this server.
        """

    def start(self) -> Awaitable[None] | None:
        """Gets ready for requests.

        Raises:
            ConfigError: the application refuses to start.
        """
        return None

    def drain(self, timeout_s: float) -> Awaitable[None] | None:
        """Ends what would not end by itself: open WebSockets; bounded by about `timeout_s`."""
        return None

    def stop(self) -> Awaitable[None] | None:
        """Leaves nothing in the reactor."""
        return None

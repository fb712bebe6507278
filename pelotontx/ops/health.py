"""Whether this server is well, for load balancers and for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from pelotontx.web import App, Request, Response, json

_NO_STORE: Final = {"Cache-Control": "no-store"}


class Health:
    """Collects what the parts of a server say of themselves.

    Args:
        clock: for the uptime.
        version: of the server, for the report.

    Attributes:
        is_stopping: set by the server when its stop begins.
    """

    def __init__(self, clock: IReactorTime, *, version: str) -> None:
        self._clock = clock
        self._version = version
        self._started_s = clock.seconds()
        self._parts: dict[str, Callable[[], tuple[bool, Any]]] = {}
        self.is_stopping = False

    def add(self, name: str, look: Callable[[], tuple[bool, Any]]) -> None:
        """`look` tells whether the part `name` is well, and what to show of it."""
        self._parts[name] = look

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether all is well, and the report as JSON shows it."""
        seen = {name: look() for name, look in self._parts.items()}
        is_well = all(well for well, _ in seen.values()) and not self.is_stopping
        status = "ok" if is_well else "stopping" if self.is_stopping else "unavailable"
        return is_well, {
            "status": status,
            "version": self._version,
            "uptime_s": round(self._clock.seconds() - self._started_s, 3),
            **{name: shown for name, (_, shown) in seen.items()},
        }


def routes(path: str, health: Health) -> App:
    """What balancers and people ask.

    ``GET path``: 200 when all is well, 503 when not, the report either way. ``path/ready``: the
    same status, and of the report ``status`` alone. ``path/live``: 200 whenever it is answered.
    """
    app = App()
    pattern = re.escape(path.rstrip("/"))

    @app.get(f"^{re.escape(path)}$")
    def show(request: Request) -> Response:
        is_well, report = health.report()
        return json(report, 200 if is_well else 503, _NO_STORE)

    @app.get(f"^{pattern}/ready$")
    def ready(request: Request) -> Response:
        is_well, report = health.report()
        return json({"status": report["status"]}, 200 if is_well else 503, _NO_STORE)

    @app.get(f"^{pattern}/live$")
    def live(request: Request) -> Response:
        return json({"status": "ok"}, 200, _NO_STORE)

    return app

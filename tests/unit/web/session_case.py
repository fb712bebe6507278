"""An app with sessions, and browsers that keep its cookies; no connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.net.http import Headers
from pelotontx.web.app import App, Request
from pelotontx.web.session import Sessions
from pelotontx.web.testing import Client, make_request

SECRET = "a secret of these tests, never used elsewhere"
HOST = {"Host": "shop.example"}


def request(
    cls: type[Request],
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Request:
    """A request to shop.example."""
    return make_request(method, target, {**HOST, **(headers or {})}, body, kind=cls)


class Browser(Client):
    """A client of an app that has sessions.

    Args:
        app: which.
        sessions: of the server that it speaks to.

    Attributes:
        set_cookies: what the last answer set.
    """

    def __init__(self, app: App, sessions: Sessions | None) -> None:
        kind = type("TestRequest", (Request,), {"__slots__": (), "sessions": sessions})
        super().__init__(app, headers=HOST, request_class=kind)
        self.set_cookies: list[str] = []

    def keep(self, headers: Headers) -> None:
        super().keep(headers)
        self.set_cookies = headers.get_all("set-cookie")


class SessionCase(SynchronousTestCase):
    """A store, an app and the clock of both."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.store = MemorySessions(self.clock)
        self.app = App()

    def sessions(self, **options: Any) -> Sessions:
        """A server's."""
        return Sessions(
            **{
                "store": self.store,
                "secrets": [SECRET],
                "wall_clock": self.clock.seconds,
                **options,
            }
        )

    def browser(self, **options: Any) -> Browser:
        """A browser at a server of its own."""
        return Browser(self.app, self.sessions(**options))

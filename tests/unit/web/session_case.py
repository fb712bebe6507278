"""An app with sessions, and browsers that keep its cookies; no connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.net.http import Response
from pelotontx.web.app import App, Request
from pelotontx.web.session import Sessions
from pelotontx.wire.http import HeadLimits, read_head, read_target

SECRET = "a secret of these tests, never used elsewhere"
_NONE: Mapping[str, str] = {}
_SET_COOKIE = re.compile(r"([^=]+)=([^;]*)(.*)")


def request(
    cls: type[Request],
    method: str,
    target: str,
    headers: Mapping[str, str] = _NONE,
    body: bytes = b"",
) -> Request:
    fields = {"Host": "shop.example", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    raw = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()
    framing = read_head(raw, method.encode(), raw.split(b" ", 2)[2], HeadLimits())
    parts = read_target(method, target.encode(), framing.host)
    return cls(None, method, parts, framing, raw, body)


class Browser:
    """Sends requests to an app and keeps what it sets.

    Args:
        case: whose app.
        sessions: of the server that it speaks to.
    """

    def __init__(self, case: SessionCase, sessions: Sessions | None) -> None:
        self._case = case
        self.request_class: type[Request] = type(
            "TestRequest", (Request,), {"__slots__": (), "sessions": sessions}
        )
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []

    def send(
        self, method: str, target: str, headers: Mapping[str, str] = _NONE, body: bytes = b""
    ) -> Deferred[Any]:
        """Sends a request; its answer may take a while, and may be an upgrade."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        fields = {"Cookie": cookie, **headers} if cookie else headers
        asked = request(self.request_class, method, target, fields, body)
        return maybeDeferred(self._case.app.handle, asked)

    def begin(self, method: str, target: str, *more: Any) -> Deferred[Response]:
        """Sends a request; what its answer sets is kept."""
        return self.send(method, target, *more).addCallback(self._answered)

    def _answered(self, response: Response) -> Response:
        self.set_cookies = response.headers.get_all("set-cookie")
        for line in self.set_cookies:
            match = _SET_COOKIE.fullmatch(line)
            assert match is not None
            if "Max-Age=0" in match[3]:
                self.cookies.pop(match[1], None)
            else:
                self.cookies[match[1]] = match[2]
        return response

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] = _NONE, body: bytes = b""
    ) -> Response:
        """Sends a request; its answer."""
        return self._case.successResultOf(self.begin(method, target, headers, body))

    def get(self, target: str, headers: Mapping[str, str] = _NONE) -> bytes:
        """The body of a page."""
        body = self.ask("GET", target, headers).body
        assert isinstance(body, bytes)
        return body


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
        return Browser(self, self.sessions(**options))

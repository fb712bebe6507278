"""An app with sessions, and browsers that keep its cookies; no connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.errors import BrokerUnavailable
from pelotontx.net.http import Headers
from pelotontx.web import App, Request
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


class FaultyStore(MemorySessions):
    """A store that fails on demand, or has to be waited for, and counts what it is asked."""

    is_down = False
    is_holding = False

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.asked: list[str] = []
        self.held: list[Deferred[Any]] = []

    def load(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        if self.is_holding:
            self.held.append(Deferred())
            return self.held[-1]
        return self._ask("load", *arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        return self._ask("save", *arguments, **options)

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Deferred[Any]:
        self.asked.append(name)
        if self.is_down:
            return fail(BrokerUnavailable("down"))
        found: Deferred[Any] = getattr(MemorySessions, name)(self, *arguments, **options)
        return found


class FaultySessionCase(SessionCase):
    """Sessions on a `FaultyStore`, four routes, and what is logged."""

    def setUp(self) -> None:
        super().setUp()
        self.store: FaultyStore = FaultyStore(self.clock)
        self.texts: list[str] = []

        def observe(event: LogEvent) -> None:
            if event["log_namespace"].startswith("pelotontx.web"):
                self.texts.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

        @self.app.get("/show")
        async def show(request: Request) -> Any:
            return dict(await request.session())

        @self.app.post("/set/{name}/{value}")
        async def set_(request: Request, name: str, value: str) -> str:
            session = await request.session()
            session[name] = value
            return session.id

        @self.app.post("/login")
        async def login(request: Request) -> str:
            session = await request.session()
            session.rotate()
            session["user"] = "bob"
            return session.id

        @self.app.post("/logout")
        async def logout(request: Request) -> str:
            (await request.session()).destroy()
            return "bye"

"""What requests get of the configuration."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.config import Config, load
from pelotontx.net.http import Response
from pelotontx.services.mounts import Mounts
from pelotontx.services.web import application, for_hosts, request_class
from pelotontx.web.mount import Host
from pelotontx.web.session import Session
from pelotontx.wire.forwarded import Origin
from tests.unit.web.session_case import request

SECRET, OLD = "a-secret-of-at-least-32-characters", "the-old-one-of-at-least-32-characters"


def configured(**overrides: object) -> Config:
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load(None, environ={}, overrides=named)


class ApplicationTests(SynchronousTestCase):
    def served(self, path: str, **overrides: object) -> Response:
        """What is answered to a client that takes gzip."""
        off: dict[str, Any] = dict.fromkeys(("paths__health", "paths__metrics"), "")
        own = configured(paths__debug_vars="", paths__websocket="", **off, **overrides)
        unused: Any = None
        app = application(
            own,
            websockets=unused,
            health_state=unused,
            metrics_registry=unused,
            variables=unused,
            mounts=Mounts(own, Host(reactor=unused, wheel=unused)),
        )
        kind = request_class(own, MemorySessions(Clock()))
        answer = app.handle(request(kind, "GET", path, {"Accept-Encoding": "gzip"}))
        assert isinstance(answer, Response)
        return answer

    def test_pages_are_compressed_if_the_configuration_says_so(self) -> None:
        plain, packed = self.served("/"), self.served("/", http__gzip=True)
        self.assertNotIn("content-encoding", plain.headers)
        self.assertEqual(packed.headers["content-encoding"], "gzip")


class HostsTests(SynchronousTestCase):
    def answered(self, serves: str, path: str, **overrides: object) -> int:
        """The status for a request for another host than shop.example."""
        own = configured(**overrides)
        handle: Any = for_hosts(own, lambda _: Response(200), serves)
        kind = request_class(own, MemorySessions(Clock()))
        status: int = handle(request(kind, "GET", path, {"Host": "10.0.0.7"})).status
        return status

    def test_other_hosts_are_turned_away_where_the_application_is(self) -> None:
        for serves, path, status in (
            ("all", "/", 421),
            ("application", "/metrics", 421),
            ("all", "/metrics", 421),
            ("all", "/health", 200),
            ("operations", "/metrics", 200),
        ):
            found = self.answered(serves, path, server__hosts=["shop.example"])
            self.assertEqual(found, status, (serves, path))

    def test_nothing_is_in_between_without_names(self) -> None:
        def handle(_: object) -> Response:
            return Response(200)

        self.assertIs(for_hosts(configured(), handle, "all"), handle)


class RequestClassTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemorySessions(Clock())
        self.texts: list[str] = []

        def observe(event: LogEvent) -> None:
            self.texts.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def begin(self, config: Config) -> str:
        """Begins a session; the cookie."""
        asked = request(request_class(config, self.store), "GET", "/")
        session = self.successResultOf(asked.session())
        session["a"] = 1
        assert asked.sessions is not None
        saved = self.successResultOf(asked.sessions.save(session, asked, Response()))
        return saved.headers["set-cookie"].partition(";")[0]

    def resume(self, config: Config, cookie: str) -> Session:
        asked = request(request_class(config, self.store), "GET", "/", {"Cookie": cookie})
        return self.successResultOf(asked.session())

    def test_the_section_is_heeded(self) -> None:
        config = configured(session__secret=SECRET, session__cookie="sid", session__secure=False)
        cookie = self.begin(config)
        self.assertTrue(cookie.startswith("sid="))
        self.assertEqual(dict(self.resume(config, cookie)), {"a": 1})

    def test_proxies_are_believed_by_the_header_that_they_write(self) -> None:
        for header, client in (("x-forwarded", "1.1.1.1"), ("forwarded", "2.2.2.2")):
            config = configured(server__proxies=["10.0.0.0/8", "unix"], server__proxy_header=header)
            fields = {"X-Forwarded-For": "1.1.1.1", "Forwarded": "for=2.2.2.2"}
            kind = request_class(config, self.store)
            direct = Origin("unix", "http", "a")
            asked = request(kind, "GET", "/", fields)
            self.assertEqual(kind.proxies.origin(direct, asked.headers.get_all).client, client)
        self.assertFalse(request_class(configured(), self.store).proxies)

    def test_old_secrets_are_good_and_do_not_sign(self) -> None:
        old = configured(session__secret=OLD)
        both = configured(session__secret=SECRET, session__old_secrets=[OLD, ""])
        new = configured(session__secret=SECRET)
        self.assertEqual(dict(self.resume(both, self.begin(old))), {"a": 1})
        self.assertEqual(dict(self.resume(new, self.begin(both))), {"a": 1})
        self.assertEqual(dict(self.resume(new, self.begin(old))), {})

    def test_a_missing_secret_matters_where_others_see_the_broker(self) -> None:
        for url in ("embedded:", "memory:"):
            self.begin(configured(broker__url=url))
            self.assertEqual(self.texts, [])
        self.begin(configured(broker__url="redis://127.0.0.1"))
        self.assertEqual(len(self.texts), 1)
        self.assertIn("session.secret", self.texts[0])

    def test_the_class_has_no_dictionary_for_each_request(self) -> None:
        asked = request(request_class(configured(), self.store), "GET", "/")
        self.assertFalse(hasattr(asked, "__dict__"))

"""`[[mount]]` tables become objects of the user's, or errors that name the key."""

from __future__ import annotations

import sys
import tempfile
from types import ModuleType
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from pelotontx.config import Config, MountConfig
from pelotontx.errors import ConfigError
from pelotontx.net.wheel import Wheel
from pelotontx.services.mounts import Mounts
from pelotontx.web import App
from pelotontx.web.files import Files
from pelotontx.web.mount import WSGI, Host, Mounted, TwistedWeb
from tests.support.fake_reactor import FakeReactor


class Recorded(Mounted):
    """Notes what the server does with it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name = name
        self.events = events
        self.started: Deferred[None] = succeed(None)

    def handle(self, request: Any) -> None: ...

    def prepare(self, host: Host, name: str) -> None:
        self.events.append(f"{self.name}: {name}")

    def start(self) -> Deferred[None]:
        self.events.append(f"{self.name} starts")
        return self.started

    def drain(self, timeout_s: float) -> None:
        self.events.append(f"{self.name} drains in {timeout_s:g} s")

    def stop(self) -> None:
        self.events.append(f"{self.name} stops")
        if self.name == "faulty":
            raise ValueError("mine")


class MountsTests(SynchronousTestCase):
    def setUp(self) -> None:
        module: Any = ModuleType("peloton_mounted")
        module.app = App()
        module.resource = Resource()
        module.wsgi = lambda environ, start_response: [b""]
        module.text = "text"
        sys.modules["peloton_mounted"] = module
        self.addCleanup(sys.modules.pop, "peloton_mounted")
        self.module = module
        self.clock = FakeReactor()
        self.events: list[str] = []

    def made(self, *tables: MountConfig) -> Mounts:
        return Mounts(Config(mount=tables), Host(reactor=self.clock, wheel=Wheel(self.clock)))

    def mounted(self, *tables: MountConfig) -> list[tuple[str, Any]]:
        app = App()
        self.made(*tables).add_to(app, None)
        return list(app.mounted())

    def test_each_kind_becomes_its_object(self) -> None:
        folder = tempfile.mkdtemp()
        found = self.mounted(
            MountConfig(path="/r", resource="peloton_mounted:resource"),
            MountConfig(path="/w/", wsgi="peloton_mounted:wsgi"),
            MountConfig(path="/d", directory=folder),
            MountConfig(path="/p", package="pelotontx:demo/static"),
            MountConfig(path="/a", app="peloton_mounted:app"),
        )
        kinds = [("/r", TwistedWeb), ("/w", WSGI), ("/d", Files), ("/p", Files)]
        self.assertEqual([(prefix, type(target)) for prefix, target in found], kinds)

    def test_what_is_of_another_kind_is_named(self) -> None:
        for table, error in (
            (
                MountConfig(path="/a", resource="peloton_mounted:text"),
                'mount[0].resource: "peloton_mounted:text": a str is not a twisted.web resource; '
                "of a Klein app its resource() is",
            ),
            (
                MountConfig(path="/a", wsgi="peloton_mounted:text"),
                'mount[0].wsgi: "peloton_mounted:text": a str is not a WSGI application',
            ),
            (
                MountConfig(path="/a", app="peloton_mounted:text"),
                'mount[0].app: "peloton_mounted:text": is a str; a pelotontx App is needed',
            ),
            (
                MountConfig(path="/a", directory="/nowhere/at/all"),
                'mount[0].directory: "/nowhere/at/all": there is no such folder',
            ),
            (
                MountConfig(path="/a", package="peloton_missing:static"),
                'mount[0].package: "peloton_missing:static": there is no package peloton_missing',
            ),
            (
                MountConfig(path="/a", package="pelotontx:nothing/here"),
                'mount[0].package: "pelotontx:nothing/here": there is no such folder in pelotontx',
            ),
        ):
            with self.assertRaises(ConfigError) as caught:
                self.made(table)
            self.assertEqual(str(caught.exception), error)

    def test_what_apps_mount_is_started_and_stopped_too_and_once(self) -> None:
        one, two = Recorded("one", self.events), Recorded("two", self.events)
        inner, app = App(), App()
        inner.mount("/in", one)
        app.mount("/out", inner)
        app.mount("/two", two)
        mounts = self.made()
        for _ in range(2):  # once for each listener that serves something else
            mounts.add_to(App(), app)
        self.assertEqual(self.events, ["one: the mount at /out/in", "two: the mount at /two"])
        del self.events[:]
        self.successResultOf(mounts.start())
        self.successResultOf(mounts.drain(3))
        self.successResultOf(mounts.stop())
        self.assertEqual(
            self.events,
            [
                *("one starts", "two starts"),
                *("one drains in 3 s", "two drains in 3 s"),
                *("two stops", "one stops"),
            ],
        )

    def test_one_waits_for_the_other_to_start(self) -> None:
        one, two = Recorded("one", self.events), Recorded("two", self.events)
        one.started = Deferred()
        app = App()
        app.mount("/one", one)
        app.mount("/two", two)
        mounts = self.made()
        mounts.add_to(App(), app)
        starting = mounts.start()
        self.assertNotIn("two starts", self.events)
        one.started.errback(ConfigError("one", "cannot"))
        self.failureResultOf(starting, ConfigError)
        self.assertNotIn("two starts", self.events)

    def test_one_that_does_not_stop_well_keeps_no_other_from_it(self) -> None:
        app = App()
        for name in ("last", "faulty"):
            app.mount(f"/{name}", Recorded(name, self.events))
        mounts = self.made()
        mounts.add_to(App(), app)
        self.successResultOf(mounts.stop())
        self.assertIn("last stops", self.events)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

"""Handlers that are cancelled, by their client's leaving or by somebody else; over a connection."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from pelotontx.web import App, Request, Response
from tests.support.mount_case import MountCase, head_and_body


class Case(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.waiting: Deferred[str] = Deferred()
        self.seen: list[str] = []

        @self.app.get("/coroutine")
        async def wait(request: Request) -> str:
            return await self.waiting

        self.app.get("/deferred")(lambda _: self.waiting)

    def add_hooks(self) -> App:
        """An app with hooks around a route of its own, /hooks/coroutine."""
        inner = App()
        inner.get("/coroutine")(self.wait_and_note)
        self.app.mount("/hooks", inner)

        @inner.on_error(500)
        def show(request: Request, error: Exception) -> str:
            return "our own page"

        @inner.after
        def note(request: Request, response: Response) -> None:
            self.seen.append(f"after {response.status}")

        return inner

    async def wait_and_note(self, request: Request) -> str:
        request.after(lambda response: self.seen.append(f"request {response.status}"))
        return await self.waiting


class OthersTests(Case):
    """The client is still there."""

    def cancelled(self, path: str) -> bytes:
        _, wire = self.send("GET", path)
        self.assertEqual(wire.taken(), b"")
        self.waiting.cancel()
        return wire.taken()

    def test_it_is_a_failure_as_any_other(self) -> None:
        for path in ("/coroutine", "/deferred"):
            self.waiting = Deferred()
            head, body = head_and_body(self.cancelled(path))
            self.assertTrue(head.startswith(b"HTTP/1.1 500 "), head)
            self.assertIn(b"Something went wrong", body)
            self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_hooks_and_error_handlers_see_it(self) -> None:
        self.add_hooks()
        head, body = head_and_body(self.cancelled("/hooks/coroutine"))
        self.assertTrue(head.startswith(b"HTTP/1.1 500 "), head)
        self.assertEqual(body, b"our own page")
        self.assertEqual(self.seen, ["after 500", "request 500"])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_so_does_a_hook_that_is_cancelled(self) -> None:
        self.add_hooks().after(lambda *_: self.waiting)
        early: Deferred[str] = self.waiting
        _, wire = self.send("GET", "/hooks/coroutine")
        self.waiting = Deferred()
        early.callback("done")
        self.assertEqual(wire.taken(), b"")
        self.waiting.cancel()
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 500 "))
        self.assertEqual(self.seen, ["after 200", "request 500"])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)


class ClientTests(Case):
    """The client has gone."""

    def left(self, path: str) -> None:
        connection: Any
        connection, wire = self.send("GET", path)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(wire.taken(), b"")

    def test_it_ends_quietly(self) -> None:
        self.add_hooks()
        for path in ("/coroutine", "/deferred", "/hooks/coroutine"):
            self.waiting = Deferred()
            self.left(path)
            self.assertTrue(self.waiting.called)
        self.assertEqual(self.seen, [])
        self.assertEqual(self.flushLoggedErrors(), [])

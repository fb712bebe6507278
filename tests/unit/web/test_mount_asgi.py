"""ASGI applications on an event loop that turns when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError, LocalProtocolError
from pelotontx.net.wheel import Wheel
from pelotontx.web.mount import ASGI, Host
from pelotontx.web.mount.answer import HIGH_BYTES
from pelotontx.web.mount.asgi_websocket import Socket
from tests.support.fake_reactor import FakeReactor
from tests.support.http_case import Wire
from tests.support.mount_case import MountCase, head_and_body

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/b")]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class LoopCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.addCleanup(self.loop.close)
        self.asyncio_reactor = AsyncioSelectorReactor(self.loop)
        for reader in tuple(self.asyncio_reactor._internalReaders):
            self.addCleanup(reader.connectionLost, None)
        self.addCleanup(self.turn)

    def turn(self, times: int = 20) -> None:
        """Lets everything go on that can."""

        async def turns() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def result(self, waiting: Any) -> Any:
        """What a coroutine of Twisted's ends with."""
        deferred = Deferred.fromCoroutine(waiting)
        return self.loop.run_until_complete(asyncio.wait_for(deferred.asFuture(self.loop), 10))


class ASGICase(LoopCase, MountCase):
    def setUp(self) -> None:
        MountCase.setUp(self)
        LoopCase.setUp(self)
        self.seen: list[Any] = []

    @property
    def reactor(self) -> Any:
        return self.asyncio_reactor

    def mount(self, prefix: str, target: Any) -> None:
        target.prepare(Host(reactor=self.reactor, wheel=self.wheel), "mount[0].asgi")
        self.app.mount(prefix, target)

    def serve(self, application: Any, **options: Any) -> ASGI:
        target = ASGI(application, **options)
        self.mount("/api", target)
        return target

    def ask(self, method: str, target: str, *more: Any, **fields: str) -> tuple[bytes, bytes]:
        _, wire = self.send(method, target, *more, **fields)
        self.turn()
        return head_and_body(wire.taken())


class ScopeTests(ASGICase):
    def test_it_says_what_was_asked(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.append(scope)
            await send(START)
            await send(body(b""))

        self.serve(application)
        self.ask("GET", "/api/caf%C3%A9?a=%20b", X_Two="2")
        scope = self.seen[0]
        expected = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/api/café",
            "raw_path": b"/api/caf%C3%A9",
            "query_string": b"a=%20b",
            "root_path": "/api",
            "headers": [(b"host", b"example.com"), (b"x-two", b"2")],
            "server": ("example.com", 80),
            "state": {},
        }
        self.assertEqual({key: scope[key] for key in expected}, expected)


class HTTPTests(ASGICase):
    def test_one_message_is_a_whole_answer(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.append(await receive())
            await send(START)
            await send(body(b"hello"))
            self.seen.append(await receive())

        self.serve(application)
        head, content = self.ask("GET", "/api")
        self.assertIn(b"\r\nContent-Type: a/b\r\nContent-Length: 5", head)
        self.assertEqual(content, b"hello")
        self.assertEqual(
            self.seen,
            [
                {"type": "http.request", "body": b"", "more_body": False},
                {"type": "http.disconnect"},
            ],
        )

    def test_several_are_a_stream(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send(START)
            await send(body(b"", more=True))
            self.seen.append(head_and_body(wire.taken()))
            await send(body(b"one", more=True))
            await send(body(b"two"))

        self.serve(application)
        _, wire = self.send("GET", "/api")
        self.turn()
        head, content = self.seen[0]
        self.assertIn(b"chunked", head)
        self.assertEqual(content, b"")
        self.assertEqual(wire.taken(), b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")

    def test_a_body_streams_to_the_application(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            while True:
                message = await receive()
                self.seen.append(message["body"])
                if not message["more_body"]:
                    break
            await send(START)
            await send(body(b"done"))

        self.serve(application)
        connection, wire = self.connect()
        connection.dataReceived(b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        self.turn()
        self.assertEqual(self.seen, [b"ab"])
        connection.dataReceived(b"cd")
        self.turn()
        self.assertEqual(self.seen, [b"ab", b"cd", b""])
        self.assertTrue(wire.taken().endswith(b"done"))

    def test_a_body_past_the_limit_is_refused(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.append(await receive())

        self.serve(application, body_limit_bytes=3)
        self.assertIn(b" 413 ", self.ask("POST", "/api", b"abcd")[0])
        self.assertEqual(self.seen, [{"type": "http.disconnect"}])

    def test_an_application_that_does_not_answer_is_a_500(self) -> None:
        async def silent(scope: Any, receive: Receive, send: Send) -> None:
            if scope["path"] == "/api/begun":
                await send(START)

        self.serve(silent)
        for path in ("/api", "/api/begun"):
            self.assertIn(b" 500 ", self.ask("GET", path)[0])
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 2)

    def test_a_failure_is_a_500_and_later_a_cut(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            if scope["path"] == "/api/late":
                await send(START)
                await send(body(b"half", more=True))
            raise ValueError("mine")

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/api")[0])
        _, wire = self.send("GET", "/api/late")
        self.turn()
        self.assertTrue(wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_a_body_that_is_no_bytes_is_refused(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send(START)
            if scope["path"] == "/api/late":
                await send(body(b"half", more=True))
            await send({"type": "http.response.body", "body": "text"})

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/api")[0])
        _, wire = self.send("GET", "/api/late")
        self.turn()
        self.assertTrue(wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 2)

    def test_a_file_that_is_not_there_is_a_500(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send(START)
            await send({"type": "http.response.pathsend", "path": "/nowhere"})

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/api")[0])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_messages_out_of_place_are_refused(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            for message in (body(b""), {"type": "websocket.accept"}):
                with self.assertRaises(LocalProtocolError):
                    await send(message)
            await send(START)
            with self.assertRaises(LocalProtocolError):
                await send(START)
            await send(body(b"x"))
            with self.assertRaises(LocalProtocolError):
                await send(body(b"y"))

        self.serve(application)
        self.assertEqual(self.ask("GET", "/api")[1], b"x")

    def test_a_field_that_may_not_be_sent_is_refused(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send({**START, "headers": [(b"x", b"a\r\nb: c")]})

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/api")[0])
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_send_waits_for_a_client_that_does_not_read(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send(START)
            for number in range(4):
                await send(body(b"x" * (HIGH_BYTES + 1), more=True))
                self.seen.append(number)

        self.serve(application)
        _, wire = self.send("GET", "/api")
        wire.producer.pauseProducing()
        self.turn()
        self.assertEqual(self.seen, [])
        wire.producer.resumeProducing()
        self.turn()
        self.assertEqual(self.seen, [0, 1, 2, 3])
        self.flushLoggedErrors(LocalProtocolError)  # it does not end its answer

    def test_a_client_that_leaves_is_told_and_nothing_is_cancelled(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            await send(START)
            await send(body(b"x", more=True))
            self.seen.append(await receive())
            try:
                await send(body(b"y", more=True))
            except OSError as error:
                self.seen.append(type(error).__name__)
                raise

        self.serve(application)
        _, wire = self.send("GET", "/api")
        self.turn()
        with capturedLogs() as events:
            wire.abortConnection()
            self.turn()
        self.assertEqual(self.seen, [{"type": "http.disconnect"}, "ClientDisconnected"])
        self.assertEqual(events, [])

    def test_a_client_that_leaves_during_its_body_is_told(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.append(await receive())

        self.serve(application)
        connection, wire = self.connect()
        connection.dataReceived(b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        self.turn()
        wire.abortConnection()
        self.turn()
        self.assertEqual(self.seen, [{"type": "http.disconnect"}])


class WebSocketRefusalTests(ASGICase):
    """What is decided before there is a connection; the rest has real clients elsewhere."""

    def opened(self, **fields: str) -> Wire:
        wanted = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **fields,
        }
        _, wire = self.send("GET", "/api/ws", **wanted)
        self.turn()
        return wire

    def ask(self, *_: Any, **fields: str) -> tuple[bytes, bytes]:
        return head_and_body(self.opened(**fields).taken())

    def answering(self, *messages: dict[str, Any]) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.append(await receive())
            for message in messages:
                await send(message)
            self.seen.append(await receive())

        self.serve(application)

    def test_who_is_accepted_while_the_server_drains_is_told_too(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            self.seen.append(await receive())

        target = self.serve(application)
        self.assertTrue(target.drain(1).called)
        wire = self.opened()
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        stopping = Deferred.fromCoroutine(target.stop())
        self.turn()
        self.assertIn((1001).to_bytes(2), wire.taken()[:4])
        wire.protocol.connectionLost(Failure(ConnectionDone()))
        self.turn()
        self.successResultOf(stopping)
        self.assertEqual(self.seen[0]["code"], 1006)

    def test_a_close_is_a_403(self) -> None:
        self.answering({"type": "websocket.close"})
        self.assertTrue(self.ask()[0].startswith(b"HTTP/1.1 403 "))
        connect, disconnect = self.seen
        self.assertEqual(connect, {"type": "websocket.connect"})
        self.assertEqual((disconnect["type"], disconnect["code"]), ("websocket.disconnect", 1006))

    def test_a_refusal_may_be_any_answer(self) -> None:
        self.answering(
            {
                "type": "websocket.http.response.start",
                "status": 401,
                "headers": [(b"www-authenticate", b"Bearer")],
            },
            {"type": "websocket.http.response.body", "body": b"no"},
        )
        head, content = self.ask()
        self.assertTrue(head.startswith(b"HTTP/1.1 401 "))
        self.assertIn(b"\r\nwww-authenticate: Bearer\r\n", head)
        self.assertEqual(content, b"no")

    def test_foreign_origins_and_malformed_requests_are_not_even_asked_about(self) -> None:
        self.answering()
        self.assertTrue(self.ask(Origin="https://evil.example")[0].startswith(b"HTTP/1.1 403 "))
        self.assertTrue(self.ask(Sec_WebSocket_Key="short")[0].startswith(b"HTTP/1.1 400 "))
        self.assertEqual(self.seen, [])

    def test_no_decision_is_a_500(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            return

        self.serve(application)
        self.assertTrue(self.ask()[0].startswith(b"HTTP/1.1 500 "))
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_a_client_that_does_not_wait_is_told_of(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            self.seen.extend([await receive(), await receive()])

        self.serve(application)
        wires: list[Wire] = []
        connect = self.connect

        def remembered() -> Any:
            connection, wire = connect()
            wires.append(wire)
            return connection, wire

        self.connect = remembered  # type: ignore[method-assign]
        self.ask()
        wires[0].abortConnection()
        self.turn()
        self.assertEqual(self.seen[1]["type"], "websocket.disconnect")


class LifespanTests(LoopCase):
    def made(self, application: Any, **options: Any) -> ASGI:
        target = ASGI(application, **options)
        clock = FakeReactor()
        target.prepare(Host(reactor=self.asyncio_reactor, wheel=Wheel(clock)), "mount[0].asgi")
        return target

    def test_it_is_started_and_stopped_with_its_state(self) -> None:
        seen: list[Any] = []

        async def application(scope: Any, receive: Receive, send: Send) -> None:
            scope["state"]["key"] = "value"
            seen.append(await receive())
            await send({"type": "lifespan.startup.complete"})
            seen.append(await receive())
            await send({"type": "lifespan.shutdown.complete"})

        target = self.made(application)
        self.result(target.start())
        self.assertEqual(seen, [{"type": "lifespan.startup"}])
        self.assertEqual(target._state, {"key": "value"})
        self.result(target.stop())
        self.assertEqual(seen[1:], [{"type": "lifespan.shutdown"}])

    def test_a_failure_keeps_the_server_from_starting(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send({"type": "lifespan.startup.failed", "message": "no database"})

        with self.assertRaises(ConfigError) as caught:
            self.result(self.made(application).start())
        self.assertEqual(
            str(caught.exception),
            "mount[0].asgi: the ASGI application did not start: no database",
        )

    def test_so_does_one_that_never_says(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await asyncio.Event().wait()

        with self.assertRaisesRegex(ConfigError, r"no answer within 0\.01 s"):
            self.result(self.made(application, startup_timeout_s=0.01).start())

    def test_an_application_without_a_lifespan_starts(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None:
            assert scope["type"] == "http"

        target = self.made(application)
        with capturedLogs() as events:
            self.result(target.start())
        self.assertIn("knows no lifespan", formatEvent(events[0]))
        self.result(target.stop())

    def test_one_that_does_not_stop_is_cancelled(self) -> None:
        seen: list[str] = []

        async def application(scope: Any, receive: Receive, send: Send) -> None:
            await send({"type": "lifespan.startup.complete"})
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        target = self.made(application, shutdown_timeout_s=0.01)
        self.result(target.start())
        with capturedLogs() as events:
            self.result(target.stop())
        self.assertEqual(seen, ["cancelled"])
        self.assertIn("did not stop within 0.01 s", formatEvent(events[0]))


class ReactorTests(SynchronousTestCase):
    def test_another_reactor_is_refused_in_one_line(self) -> None:
        async def application(scope: Any, receive: Receive, send: Send) -> None: ...

        clock = FakeReactor()
        with self.assertRaises(ConfigError) as caught:
            ASGI(application).prepare(Host(reactor=clock, wheel=Wheel(clock)), "mount[3].asgi")
        self.assertEqual(
            str(caught.exception),
            "mount[3].asgi: an ASGI application needs the asyncio reactor: start the server with "
            "twistd --reactor=asyncio peloton ...",
        )

    def test_only_a_callable_will_do(self) -> None:
        with self.assertRaisesRegex(TypeError, "a str is not an ASGI application"):
            ASGI("application")  # type: ignore[arg-type]


class Recorder:
    """Stands in for a connection: notes what the application's side does with it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.room: list[Deferred[None]] = []

    def drained(self) -> Deferred[None]:
        self.room.append(Deferred())
        return self.room[-1]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


class WebSocketFlowTests(ASGICase):
    """An application that does not keep up with its client, or its client with it."""

    def setUp(self) -> None:
        super().setUp()
        self.sockets: list[Socket] = []
        self.app.mount("/ws", self)  # type: ignore[arg-type]
        self.send(
            "GET",
            "/ws",
            Connection="Upgrade",
            Upgrade="websocket",
            Sec_WebSocket_Version="13",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
        )
        self.socket = self.sockets[0]
        self.connection = Recorder()
        self.socket._begin(self.connection)  # type: ignore[arg-type]
        self.assertEqual(self.received()["type"], "websocket.connect")

    def handle(self, request: Any) -> Any:
        host = Host(reactor=self.reactor, wheel=self.wheel)
        factory: Any = None
        self.sockets.append(Socket(request, host, factory, self.loop))
        return self.sockets[-1].answer.response

    def received(self) -> Any:
        return self.loop.run_until_complete(self.socket.receive())

    def test_a_client_is_not_read_while_much_waits(self) -> None:
        for _ in range(3):
            self.socket.binary_received(b"x" * 60_000)
        self.assertEqual(self.connection.calls, [("pause_reading",)])
        self.received()
        self.assertEqual(len(self.connection.calls), 1)
        self.received()
        self.assertEqual(self.connection.calls[1:], [("resume_reading",)])
        self.assertEqual(len(self.received()["bytes"]), 60_000)

    def test_empty_messages_are_not_free(self) -> None:
        for _ in range(1000):
            self.socket.text_received(b"")
        self.assertEqual(self.connection.calls, [("pause_reading",)])

    def test_far_too_much_ends_it(self) -> None:
        for _ in range(17):
            self.socket.binary_received(b"x" * 1024 * 1024)
        name, code, _ = self.connection.calls[1]
        self.assertEqual((name, code), ("close", 1008))
        self.assertEqual(self.connection.calls[2:], [("resume_reading",)])
        for _ in range(16):
            self.received()

    def test_send_waits_for_room(self) -> None:
        sending = self.loop.create_task(
            self.socket.send({"type": "websocket.send", "text": "hällo"})
        )
        self.turn()
        self.assertFalse(sending.done())
        self.assertEqual(self.connection.calls[0], ("send_text", "hällo".encode()))
        self.connection.room[0].callback(None)
        self.turn()
        self.assertTrue(sending.done())

    def test_after_the_end_there_is_nobody_to_send_to(self) -> None:
        self.socket.connection_lost(1001)
        self.assertEqual(self.received()["code"], 1001)
        self.assertEqual(self.received()["code"], 1001)
        with self.assertRaises(OSError):
            self.loop.run_until_complete(
                self.socket.send({"type": "websocket.send", "bytes": b"x"})
            )

"""`twisted.web` resources on a channel of ours: what they may rely on, and what bounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from pelotontx.net.http import HTTPConnection
from pelotontx.web.mount import TwistedWeb
from pelotontx.web.mount.answer import HIGH_BYTES
from tests.support.http_case import Wire
from tests.support.mount_case import MountCase, head_and_body


class Leaf(Resource):
    """Renders as a function does."""

    isLeaf = True

    def __init__(self, render: Callable[[Any], Any]) -> None:
        super().__init__()
        self.render_GET = self.render_POST = render


class ResourceCase(MountCase):
    options: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        super().setUp()
        self.root = Resource()
        self.mount("/old", TwistedWeb(self.root, **self.options))

    def leaf(self, name: str, render: Callable[[Any], Any]) -> None:
        self.root.putChild(name.encode(), Leaf(render))

    def kept(self, name: str = "x", method: str = "GET") -> tuple[Any, HTTPConnection, Wire]:
        """A request that its resource keeps for later."""
        kept: list[Any] = []

        def keep(request: Any) -> int:
            kept.append(request)
            return NOT_DONE_YET

        self.leaf(name, keep)
        connection, wire = self.send(method, f"/old/{name}")
        return kept[0], connection, wire


class RequestTests(ResourceCase):
    def test_a_resource_sees_its_own_path(self) -> None:
        seen: list[Any] = []

        def render(request: Any) -> bytes:
            seen.append((request.uri, request.path, request.prepath, request.postpath))
            seen.append((request.prePathURL(), request.args, request.clientproto))
            return b"done"

        self.leaf("a", render)
        _, wire = self.send("GET", "/old/a/b%2Fc/d?q=1&q=2")
        self.assertEqual(
            seen,
            [
                (
                    b"/old/a/b%2Fc/d?q=1&q=2",
                    b"/old/a/b%2Fc/d",
                    [b"old", b"a"],
                    [b"b/c", b"d"],
                ),
                (b"http://example.com/old/a", {b"q": [b"1", b"2"]}, b"HTTP/1.1"),
            ],
        )
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 4", head)
        self.assertNotIn(b"TwistedWeb", head)
        self.assertEqual(body, b"done")

    def test_a_path_that_only_looks_like_the_mounts_is_not_there(self) -> None:
        self.mount("/a/b", TwistedWeb(Leaf(lambda request: b"inside")))
        _, wire = self.send("GET", "/a%2Fb/c")
        self.assertIn(b" 404 ", wire.taken())
        _, wire = self.send("GET", "/a/b/c")
        self.assertTrue(wire.taken().endswith(b"inside"))

    def test_an_absolute_target_is_a_path(self) -> None:
        self.leaf("a", lambda request: request.uri)
        _, wire = self.send("GET", "http://example.com/old/a?b")
        self.assertTrue(wire.taken().endswith(b"\r\n\r\n/old/a?b"))

    def test_headers_cookies_and_the_body_are_there(self) -> None:
        seen: list[Any] = []

        def render(request: Any) -> bytes:
            seen.append(request.requestHeaders.getRawHeaders("x-two"))
            seen.append(request.getCookie(b"a"))
            seen.append(request.content.read())
            return b""

        self.leaf("a", render)
        self.send("POST", "/old/a", b"\0body", X_Two="1", Cookie="a=b; c=d")
        self.assertEqual(seen, [["1"], b"b", b"\0body"])

    def test_forms_are_arguments(self) -> None:
        seen: list[Any] = []

        def render(request: Any) -> bytes:
            seen.append(request.args)
            return b""

        self.leaf("a", render)
        form = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nvalue\r\n--x--\r\n'
        multipart = "multipart/form-data; boundary=x"
        self.send("POST", "/old/a?q=1", form, Content_Type=multipart)
        self.send("POST", "/old/a", b"g=2", Content_Type="application/x-www-form-urlencoded")
        self.assertEqual(seen, [{b"q": [b"1"], b"f": [b"value"]}, {b"g": [b"2"]}])

    def test_a_malformed_form_is_refused(self) -> None:
        self.leaf("a", lambda request: b"not reached")
        _, wire = self.send("POST", "/old/a", b"x", Content_Type="multipart/form-data; boundary=")
        self.assertIn(b" 400 ", wire.taken())

    def test_the_body_is_awaited_and_a_long_one_is_in_a_file(self) -> None:
        seen: list[Any] = []

        def render(request: Any) -> bytes:
            seen.append((type(request.content).__name__, len(request.content.read())))
            return b""

        self.leaf("a", render)
        connection, wire = self.connect()
        connection.dataReceived(
            b"POST /old/a HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        self.assertEqual(wire.taken(), b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.dataReceived(b"x" * 100_000)
        self.assertEqual(seen, [])
        connection.dataReceived(b"x" * 100_000)
        self.assertEqual(seen, [("BufferedRandom", 200_000)])

    def test_a_client_that_leaves_during_its_body_leaves_nothing(self) -> None:
        self.leaf("a", lambda request: b"not reached")
        connection, wire = self.connect()
        connection.dataReceived(b"POST /old/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        wire.abortConnection()
        self.assertEqual(self.factory.connections, set())

    def test_sessions_last_and_end_with_the_server(self) -> None:
        def count(request: Any) -> bytes:
            session = request.getSession()
            session.count = getattr(session, "count", 0) + 1
            return b"%d" % session.count

        self.leaf("a", count)
        _, wire = self.send("GET", "/old/a")
        head, _ = head_and_body(wire.taken())
        cookie = head.split(b"Set-Cookie: ")[1].split(b";")[0].decode()
        _, wire = self.send("GET", "/old/a", Cookie=cookie)
        self.assertTrue(wire.taken().endswith(b"\r\n\r\n2"))


class LimitTests(ResourceCase):
    options: ClassVar[dict[str, Any]] = {"body_limit_bytes": 10, "unread_limit_bytes": 100_000}

    def test_a_body_past_the_limit_is_refused(self) -> None:
        self.leaf("a", lambda request: b"reached")
        _, wire = self.send("POST", "/old/a", b"x" * 11)
        self.assertIn(b" 413 ", wire.taken())
        _, wire = self.send("POST", "/old/a", b"x" * 10)
        self.assertTrue(wire.taken().endswith(b"reached"))

    def test_a_resource_that_does_not_wait_for_its_client_is_cut_off(self) -> None:
        request, _, wire = self.kept()
        failures: list[Any] = []
        request.notifyFinish().addErrback(failures.append)
        wire.producer.pauseProducing()
        for _ in range(5):
            request.write(b"x" * 30_000)
        wire.producer.resumeProducing()
        self.assertTrue(wire.aborted)
        self.assertEqual(len(failures), 1)


class AnswerTests(ResourceCase):
    def test_an_answer_may_come_later_in_pieces(self) -> None:
        request, _, wire = self.kept()
        request.setResponseCode(202)
        request.setHeader(b"x-mine", b"1")
        request.write(b"one")
        head, body = head_and_body(wire.taken())
        self.assertTrue(head.startswith(b"HTTP/1.1 202 "))
        self.assertIn(b"\r\nX-Mine: 1\r\n", head)
        self.assertEqual(body, b"3\r\none\r\n")
        finished: list[None] = []
        request.notifyFinish().addCallback(finished.append)
        request.write(b"two")
        request.finish()
        self.assertEqual(wire.taken(), b"3\r\ntwo\r\n0\r\n\r\n")
        self.assertEqual(finished, [None])

    def test_an_empty_write_sends_the_head(self) -> None:
        request, _, wire = self.kept()
        request.write(b"")
        self.clock.advance(0)
        self.assertTrue(wire.taken().endswith(b"chunked\r\n\r\n"))

    def test_what_is_written_while_rendering_leaves_as_a_whole(self) -> None:
        def render(request: Any) -> int:
            request.write(b"a")
            request.write(b"b")
            request.finish()
            return NOT_DONE_YET

        self.leaf("a", render)
        _, wire = self.send("GET", "/old/a")
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 2", head)
        self.assertEqual(body, b"ab")

    def test_head_has_no_body(self) -> None:
        self.leaf("a", lambda request: b"body")
        _, wire = self.send("HEAD", "/old/a")
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 4", head)
        self.assertEqual(body, b"")

    def test_the_next_request_of_a_connection_waits_for_the_answer(self) -> None:
        request, connection, wire = self.kept()
        self.leaf("next", lambda request: b"next")
        connection.dataReceived(b"GET /old/next HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(wire.taken(), b"")
        request.write(b"first")
        request.finish()
        answers = wire.taken()
        self.assertLess(answers.index(b"first"), answers.index(b"next"))

    def test_a_client_that_leaves_is_told(self) -> None:
        request, _, wire = self.kept()
        failures: list[Any] = []
        request.notifyFinish().addErrback(failures.append)
        wire.abortConnection()
        self.assertTrue(failures[0].check(ConnectionDone))
        request.write(b"nobody reads this")

    def test_a_resource_that_fails_is_a_500(self) -> None:
        def fail(request: Any) -> bytes:
            raise ValueError("mine")

        self.leaf("a", fail)
        _, wire = self.send("GET", "/old/a")
        self.assertIn(b" 500 ", wire.taken())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_resource_can_drop_the_connection(self) -> None:
        request, _, wire = self.kept()
        request.write(b"half")
        request.loseConnection()
        self.assertTrue(wire.aborted)
        self.flushLoggedErrors(ConnectionDone)


class Pull:
    """A pull producer of so many pieces."""

    def __init__(self, request: Any, pieces: int) -> None:
        self.request = request
        self.left = pieces
        self.is_stopped = False
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self.left:
            self.left -= 1
            self.request.write(b"x" * HIGH_BYTES)
        else:
            self.request.unregisterProducer()
            self.request.finish()

    def stopProducing(self) -> None:
        self.is_stopped = True


class Push:
    """A push producer that notes what it is told."""

    def __init__(self, request: Any) -> None:
        self.told: list[str] = []
        request.registerProducer(self, True)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class ProducerTests(ResourceCase):
    def test_a_pull_producer_is_asked_as_the_client_reads(self) -> None:
        request, _, wire = self.kept()
        wire.producer.pauseProducing()
        producer = Pull(request, 5)
        self.assertGreater(producer.left, 2)
        wire.producer.resumeProducing()
        self.assertEqual(producer.left, 0)
        self.assertTrue(wire.taken().endswith(b"\r\n0\r\n\r\n"))

    def test_a_pull_producer_of_a_known_length_is_read_to_its_end(self) -> None:
        def render(request: Any) -> int:
            request.setHeader(b"content-length", b"%d" % (2 * HIGH_BYTES))
            Pull(request, 2)
            return NOT_DONE_YET

        self.leaf("a", render)
        connection, wire = self.send("GET", "/old/a")
        self.assertEqual(len(head_and_body(wire.taken())[1]), 2 * HIGH_BYTES)
        self.assertIn(connection, self.factory.connections)

    def test_a_pull_producer_may_write_later(self) -> None:
        request, _, wire = self.kept()
        asked: list[int] = []

        class Late(Pull):
            def resumeProducing(self) -> None:
                asked.append(1)

        Late(request, 0)
        self.assertEqual(len(asked), 1)
        request.write(b"late")
        self.assertEqual(len(asked), 2)
        request.unregisterProducer()
        request.finish()
        self.assertTrue(wire.taken().endswith(b"4\r\nlate\r\n0\r\n\r\n"))

    def test_a_push_producer_is_paused_and_resumed(self) -> None:
        request, _, wire = self.kept()
        producer = Push(request)
        request.write(b"begin")
        wire.producer.pauseProducing()
        request.write(b"x")
        request.write(b"x" * (HIGH_BYTES + 1))
        self.assertEqual(producer.told, ["pause"])
        wire.producer.resumeProducing()
        self.assertEqual(producer.told, ["pause", "resume"])
        wire.abortConnection()
        self.assertEqual(producer.told, ["pause", "resume", "stop"])


class Recorder(Protocol):
    """Takes a connection over."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.is_lost = True


class TakeoverTests(ResourceCase):
    fields: ClassVar[dict[str, str]] = {"Connection": "upgrade", "Upgrade": "echo"}

    def setUp(self) -> None:
        super().setUp()
        self.protocol = Recorder()
        self.leaf("a", self.take_over)

    def take_over(self, request: Any) -> Any:
        """As Autobahn's WebSocketResource does."""
        transport, request.channel.transport = request.channel.transport, None
        transport.protocol = self.protocol
        self.protocol.makeConnection(transport)
        transport.setTcpNoDelay(True)
        self.protocol.transport.write(b"101 ")
        self.protocol.dataReceived(b"head")
        return NOT_DONE_YET

    def test_a_resource_can_take_the_connection_over(self) -> None:
        connection, wire = self.connect()
        wire.setTcpNoDelay = lambda flag: wire.write(b"no delay, ")
        connection.dataReceived(
            b"GET /old/a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nmore"
        )
        self.assertEqual(wire.taken(), b"")
        self.clock.advance(0)
        self.assertEqual(wire.taken(), b"no delay, 101 ")
        self.assertEqual(self.protocol.received, [b"head", b"more"])
        wire.protocol.dataReceived(b"again")
        self.assertEqual(self.protocol.received[-1], b"again")
        self.protocol.transport.write(b"answer")
        self.assertEqual(wire.taken(), b"answer")
        wire.protocol.connectionLost()
        self.assertTrue(self.protocol.is_lost)
        self.assertEqual(self.factory.connections, set())

    def test_a_client_that_does_not_wait_is_let_go(self) -> None:
        _, wire = self.send("GET", "/old/a", **self.fields)
        wire.abortConnection()
        self.clock.advance(0)
        self.assertEqual(self.factory.connections, set())

    def test_who_has_taken_over_hears_of_a_client_that_left_before_the_hand_over(self) -> None:
        connection, _ = self.send("GET", "/old/a", **self.fields)
        self.assertFalse(self.protocol.is_lost)
        connection.connectionLost()
        self.assertTrue(self.protocol.is_lost)
        self.clock.advance(0)
        self.assertEqual(self.protocol.received, [b"head"])

    def test_protocol_that_fails_at_that_is_logged(self) -> None:
        class Failing(Recorder):
            def connectionLost(self, reason: Any = None) -> None:
                raise ZeroDivisionError

        self.protocol = Failing()
        connection, _ = self.send("GET", "/old/a", **self.fields)
        connection.connectionLost()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.factory.connections, set())


class ConstructionTests(ResourceCase):
    def test_only_a_resource_will_do(self) -> None:
        with self.assertRaisesRegex(TypeError, "a str is not a twisted.web resource"):
            TwistedWeb("resource")

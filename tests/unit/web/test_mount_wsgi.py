"""WSGI applications in real threads; what threads tell the reactor is done when a test says so."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any
from wsgiref.validate import validator

from twisted.logger import capturedLogs, formatEvent

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import HTTPConnection
from pelotontx.web.mount import WSGI
from pelotontx.web.mount.answer import HIGH_BYTES
from pelotontx.web.mount.wsgi import AHEAD_BYTES
from tests.support.http_case import Wire
from tests.support.mount_case import MountCase, head_and_body
from tests.unit.backend.callee_case import THREAD_TIMEOUT_S, ThreadedClock

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]

PLAIN = [("Content-Type", "text/plain")]


class WSGICase(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.threads = ThreadedClock()
        self.release = threading.Event()
        self.addCleanup(self.release.set)

    @property
    def reactor(self) -> ThreadedClock:
        return self.threads

    def serve(self, application: Any, **options: Any) -> None:
        self.mount("/app", WSGI(application, **options))

    def until_answered(self, wire: Wire) -> tuple[bytes, bytes]:
        """Lets threads go on until a whole answer is there."""

        def is_whole() -> bool:
            head, separator, body = wire.value().partition(b"\r\n\r\n")
            if not separator:
                return wire.aborted
            if b"Transfer-Encoding: chunked" in head:
                return body.endswith(b"0\r\n\r\n") or wire.aborted
            return True

        self.threads.until(is_whole)
        return head_and_body(wire.taken())

    def ask(self, method: str, target: str, *more: Any, **fields: str) -> tuple[bytes, bytes]:
        _, wire = self.send(method, target, *more, **fields)
        return self.until_answered(wire)


class EnvironTests(WSGICase):
    def seen(self, target: str, **fields: str) -> Environ:
        seen: list[Environ] = []

        def application(environ: Environ, start: Start) -> list[bytes]:
            seen.append(environ)
            start("204 No Content", [])
            return []

        self.serve(application)
        self.ask("GET", target, **fields)
        return seen[0]

    def test_it_says_what_pep_3333_asks_for(self) -> None:
        environ = self.seen("/app/caf%C3%A9/x?a=%20b", Accept="a", X_Two="2")
        expected = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "/app",
            "PATH_INFO": "/cafÃ©/x",
            "QUERY_STRING": "a=%20b",
            "SERVER_NAME": "example.com",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "example.com",
            "HTTP_ACCEPT": "a",
            "HTTP_X_TWO": "2",
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self.assertEqual({key: environ.get(key) for key in expected}, expected)
        self.assertNotIn("CONTENT_LENGTH", environ)
        self.assertNotIn("HTTPS", environ)

    def test_the_bare_prefix_has_an_empty_path(self) -> None:
        self.assertEqual(self.seen("/app")["PATH_INFO"], "")

    def test_fields_that_pass_for_others_are_left_out(self) -> None:
        connection, wire = self.connect()
        seen: list[Environ] = []

        def application(environ: Environ, start: Start) -> list[bytes]:
            seen.append(environ)
            start("200 OK", PLAIN)
            return [b"x"]

        self.serve(application)
        connection.dataReceived(
            b"GET /app HTTP/1.1\r\nHost: a\r\nX_Real_IP: 1\r\nProxy: evil\r\n"
            b"A: 1\r\nA: 2\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n"
        )
        self.until_answered(wire)
        self.assertNotIn("HTTP_X_REAL_IP", seen[0])
        self.assertNotIn("HTTP_PROXY", seen[0])
        self.assertEqual(seen[0]["HTTP_A"], "1,2")
        self.assertEqual(seen[0]["HTTP_COOKIE"], "a=1; b=2")

    def test_wsgi_errors_is_the_log(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            print("one\ntwo", file=environ["wsgi.errors"], flush=True)
            start("200 OK", PLAIN)
            return [b"x"]

        self.serve(application)
        with capturedLogs() as events:
            self.ask("GET", "/app")
        self.assertEqual([formatEvent(event) for event in events], ["one", "two"])


class BodyTests(WSGICase):
    def test_a_body_can_be_read_in_every_way(self) -> None:
        got: list[Any] = []

        def application(environ: Environ, start: Start) -> list[bytes]:
            body = environ["wsgi.input"]
            got.extend((environ["CONTENT_LENGTH"], body.read(3), body.readline(), body.readline(2)))
            got.extend((list(body), body.read(), body.read(5)))
            start("200 OK", PLAIN)
            return [b"x"]

        self.serve(application)
        self.ask("POST", "/app", b"abcdef\nghij\nk\nl")
        self.assertEqual(got, ["15", b"abc", b"def\n", b"gh", [b"ij\n", b"k\n", b"l"], b"", b""])

    def test_a_short_body_takes_no_thread_until_it_is_there(self) -> None:
        called = SimpleQueue[bytes]()

        def application(environ: Environ, start: Start) -> list[bytes]:
            called.put(environ["wsgi.input"].read())
            start("200 OK", PLAIN)
            return [b"x"]

        self.serve(application)
        before = set(threading.enumerate())  # those of other tests may be ending
        connection, wire = self.connect()
        connection.dataReceived(b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        self.assertLessEqual(set(threading.enumerate()), before)
        connection.dataReceived(b"cd")
        self.until_answered(wire)
        self.assertEqual(called.get(timeout=THREAD_TIMEOUT_S), b"abcd")

    def test_a_long_body_streams_to_the_application(self) -> None:
        sizes = SimpleQueue[int]()

        def application(environ: Environ, start: Start) -> list[bytes]:
            while piece := environ["wsgi.input"].read1(HIGH_BYTES):
                sizes.put(len(piece))
            start("200 OK", PLAIN)
            return [b"done"]

        self.serve(application)
        connection, wire = self.connect()
        head = f"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: {AHEAD_BYTES * 2}\r\n\r\n"
        connection.dataReceived(head.encode() + b"x" * AHEAD_BYTES)
        got = 0
        while got < AHEAD_BYTES:
            got += sizes.get(timeout=THREAD_TIMEOUT_S)
        self.threads.wakeups.get(timeout=THREAD_TIMEOUT_S)()  # it asks for more
        connection.dataReceived(b"x" * AHEAD_BYTES)
        self.assertEqual(self.until_answered(wire)[1], b"done")
        while not sizes.empty():
            got += sizes.get()
        self.assertEqual(got, 2 * AHEAD_BYTES)

    def test_chunks_have_an_end(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            assert "CONTENT_LENGTH" not in environ
            assert environ["wsgi.input_terminated"]
            start("200 OK", PLAIN)
            return [environ["wsgi.input"].read()]

        self.serve(application)
        connection, wire = self.connect()
        connection.dataReceived(
            b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        )
        self.assertEqual(self.until_answered(wire)[1], b"abc")

    def test_a_body_past_the_limit_is_refused(self) -> None:
        self.serve(lambda environ, start: self.fail("reached"), body_limit_bytes=3)
        _, wire = self.send("POST", "/app", b"abcd")
        self.assertIn(b" 413 ", wire.taken())

    def test_continue_is_sent_when_the_application_reads(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            if environ["PATH_INFO"] == "/read":
                environ["wsgi.input"].read()
            start("200 OK", PLAIN)
            return [b"answer"]

        self.serve(application)
        for path, first in (("/app", b"HTTP/1.1 200"), ("/app/read", b"HTTP/1.1 100")):
            connection, wire = self.connect()
            connection.dataReceived(
                f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
                "Expect: 100-continue\r\n\r\n".encode()
            )
            self.threads.until(wire.value)
            self.assertTrue(wire.value().startswith(first))
            if first.endswith(b"100"):
                wire.clear()
                connection.dataReceived(b"ab")
                self.assertEqual(self.until_answered(wire)[1], b"answer")

    def test_who_reads_on_behind_its_answer_does_not_wait_for_ever(self) -> None:
        ended = SimpleQueue[BaseException]()

        class Answer:
            """Reads what is left when it is closed, as frameworks do."""

            def __init__(self, environ: Environ) -> None:
                self._body = environ["wsgi.input"]

            def __iter__(self) -> Iterator[bytes]:
                return iter([b"answer"])

            def close(self) -> None:
                try:
                    self._body.read()
                except OSError as error:
                    ended.put(error)

        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", [*PLAIN, ("Content-Length", "6")])
            return Answer(environ)

        self.serve(application)
        connection, wire = self.connect()
        head = b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        connection.dataReceived(head + b"x" * AHEAD_BYTES)
        self.assertEqual(self.until_answered(wire)[1], b"answer")
        self.threads.until(lambda: not ended.empty())
        self.assertIn("has its answer", str(ended.get()))

    def test_a_client_that_leaves_releases_a_thread_that_reads(self) -> None:
        ended = SimpleQueue[BaseException]()

        def application(environ: Environ, start: Start) -> list[bytes]:
            try:
                return [environ["wsgi.input"].read()]
            except OSError as error:
                ended.put(error)
                raise

        self.serve(application)
        connection, wire = self.connect()
        head = b"POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        connection.dataReceived(head + b"x" * AHEAD_BYTES)
        self.threads.wakeups.get(timeout=THREAD_TIMEOUT_S)()  # it asks for more
        wire.abortConnection()
        self.assertIn("gone", str(ended.get(timeout=THREAD_TIMEOUT_S)))


class AnswerTests(WSGICase):
    def test_one_piece_is_a_whole_answer(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            start("201 Made", [*PLAIN, ("X-Mine", "1"), ("Date", "never")])
            return [b"hello"]

        self.serve(application)
        head, body = self.ask("GET", "/app")
        self.assertTrue(head.startswith(b"HTTP/1.1 201 Created\r\n"))
        self.assertIn(b"\r\nContent-Length: 5", head)
        self.assertIn(b"\r\nX-Mine: 1\r\n", head)
        self.assertNotIn(b"never", head)
        self.assertEqual(body, b"hello")

    def test_it_passes_the_validator(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            start("200 OK", PLAIN)
            return [environ["wsgi.input"].read(10)]

        self.serve(validator(application))
        self.assertIn(b"abc", self.ask("POST", "/app?x=1", b"abc")[1])
        self.assertEqual(self.ask("HEAD", "/app")[1], b"")

    def test_write_and_iteration_stream(self) -> None:
        closed = SimpleQueue[bool]()

        class Pieces:
            def __init__(self, write: Callable[[bytes], None]) -> None:
                write(b"written ")
                self._pieces = iter([b"", b"and ", b"yielded"])

            def __iter__(self) -> Iterator[bytes]:
                return self._pieces

            def close(self) -> None:
                closed.put(True)

        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            return Pieces(start("200 OK", PLAIN))

        self.serve(application)
        head, body = self.ask("GET", "/app")
        self.assertIn(b"chunked", head)
        pieces = body.split(b"\r\n")
        self.assertEqual(b"".join(pieces[1::2]), b"written and yielded")
        self.assertTrue(closed.get(timeout=THREAD_TIMEOUT_S))

    def test_head_is_answered_without_an_end_of_the_body(self) -> None:
        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            while True:
                yield b"for ever"

        self.serve(application)
        head, body = self.ask("HEAD", "/app")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 "))
        self.assertEqual(body, b"")

    def test_a_failure_is_a_500_and_later_a_cut(self) -> None:
        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            if environ["PATH_INFO"]:
                yield b"half"
            raise ValueError("mine")

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/app")[0])
        _, wire = self.send("GET", "/app/later")
        self.threads.until(lambda: wire.aborted)
        self.assertNotIn(b"\r\n0\r\n", wire.value())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_a_failure_behind_a_whole_answer_is_logged(self) -> None:
        class Pieces:
            def __iter__(self) -> Iterator[bytes]:
                yield b"whole"

            def close(self) -> None:
                raise ValueError("mine")

        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", [*PLAIN, ("Content-Length", "5")])
            return Pieces()

        self.serve(application)
        _, wire = self.send("GET", "/app")
        failed: list[Any] = []
        self.threads.until(lambda: failed.extend(self.flushLoggedErrors(ValueError)) or failed)
        self.assertTrue(wire.value().endswith(b"\r\n\r\nwhole"))
        self.assertFalse(wire.ended)

    def test_an_error_replaces_an_answer_that_has_not_begun(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            start("200 OK", PLAIN)
            try:
                raise ValueError("mine")
            except ValueError as error:
                start("503 Later", PLAIN, (ValueError, error, error.__traceback__))
            return [b"sorry"]

        self.serve(application)
        head, body = self.ask("GET", "/app")
        self.assertTrue(head.startswith(b"HTTP/1.1 503 "))
        self.assertEqual(body, b"sorry")

    def test_what_breaks_the_protocol_is_a_500(self) -> None:
        def twice(environ: Environ, start: Start) -> list[bytes]:
            start("200 OK", PLAIN)
            start("200 OK", PLAIN)
            return [b"x"]

        def never(environ: Environ, start: Start) -> list[bytes]:
            return [b"x"]

        def injected(environ: Environ, start: Start) -> list[bytes]:
            start("200 OK", [("X", "a\r\nSet-Cookie: b")])
            return [b"x"]

        def nonsense(environ: Environ, start: Start) -> list[bytes]:
            start("fine", [])
            return [b"x"]

        def text(environ: Environ, start: Start) -> list[str]:
            start("200 OK", PLAIN)
            return ["x"]

        def texts(environ: Environ, start: Start) -> list[str]:
            start("200 OK", PLAIN)
            return ["x", "y"]

        applications: dict[str, Any] = {
            "twice": twice,
            "never": never,
            "injected": injected,
            "bad": nonsense,
            "text": text,
            "texts": texts,
        }
        for name, application in applications.items():
            self.mount(f"/{name}", WSGI(application))
            self.assertIn(b" 500 ", self.ask("GET", f"/{name}")[0], name)
            self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1, name)

    def test_an_exit_ends_its_request_only(self) -> None:
        def application(environ: Environ, start: Start) -> list[bytes]:
            raise SystemExit(1)

        self.serve(application)
        self.assertIn(b" 500 ", self.ask("GET", "/app")[0])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_files_are_sent_whatever_they_are(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"0123456789")
            file.flush()

            def application(environ: Environ, start: Start) -> Iterable[bytes]:
                start("200 OK", PLAIN)
                if environ["PATH_INFO"]:
                    return environ["wsgi.file_wrapper"](io.BytesIO(b"in memory"), 4)
                copy = open(file.fileno(), "rb", closefd=False)  # noqa: SIM115
                copy.seek(3)
                return environ["wsgi.file_wrapper"](copy)

            self.serve(application)
            head, body = self.ask("GET", "/app")
            self.assertIn(b"\r\nContent-Length: 7", head)
            self.assertEqual(body, b"3456789")
            _, body = self.ask("GET", "/app/memory")
            self.assertEqual(b"".join(body.split(b"\r\n")[1::2]), b"in memory")


class BackpressureTests(WSGICase):
    def streaming(self) -> tuple[HTTPConnection, Wire, SimpleQueue[str]]:
        """A client that does not read what an application sends without an end."""
        news = SimpleQueue[str]()

        def application(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            try:
                while True:
                    news.put("piece")
                    yield b"x" * HIGH_BYTES
            finally:
                news.put("closed")

        self.serve(application)
        connection, wire = self.connect()
        wire.producer.pauseProducing()
        connection.dataReceived(b"GET /app HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(3):
            self.assertEqual(news.get(timeout=THREAD_TIMEOUT_S), "piece")
            if _ < 2:
                self.threads.wakeups.get(timeout=THREAD_TIMEOUT_S)()
        return connection, wire, news

    def test_a_thread_waits_for_a_client_that_does_not_read(self) -> None:
        _, wire, news = self.streaming()
        self.assertTrue(news.empty())  # it waits with the third piece in its hands
        wire.producer.resumeProducing()
        self.assertEqual(news.get(timeout=THREAD_TIMEOUT_S), "piece")
        wire.abortConnection()
        while news.get(timeout=THREAD_TIMEOUT_S) != "closed":
            pass

    def test_and_is_released_when_the_client_leaves(self) -> None:
        _, wire, news = self.streaming()
        wire.abortConnection()
        self.assertEqual(news.get(timeout=THREAD_TIMEOUT_S), "closed")


class QueueTests(WSGICase):
    def waiting(self, environ: Environ, start: Start) -> list[bytes]:
        assert self.release.wait(THREAD_TIMEOUT_S)
        start("200 OK", PLAIN)
        return [b"done"]

    def test_past_the_queue_there_is_503(self) -> None:
        self.serve(self.waiting, threads=2, queue=1)
        wires = [self.send("GET", "/app")[1] for _ in range(4)]
        head, _ = head_and_body(wires[3].taken())
        self.assertTrue(head.startswith(b"HTTP/1.1 503 "))
        self.assertRegex(head, rb"\r\nRetry-After: \d+")
        self.release.set()
        for wire in wires[:3]:
            self.assertEqual(self.until_answered(wire)[1], b"done")
        self.assertEqual(self.ask("GET", "/app")[1], b"done")

    def test_who_leaves_while_it_waits_is_not_served(self) -> None:
        calls = SimpleQueue[str]()

        def application(environ: Environ, start: Start) -> list[bytes]:
            calls.put(environ["PATH_INFO"])
            return self.waiting(environ, start)

        self.serve(application, threads=1)
        _, first = self.send("GET", "/app/first")
        self.assertEqual(calls.get(timeout=THREAD_TIMEOUT_S), "/first")
        _, second = self.send("GET", "/app/second")
        _, third = self.send("GET", "/app/third")
        second.abortConnection()
        self.release.set()
        self.assertEqual(self.until_answered(first)[1], b"done")
        self.assertEqual(self.until_answered(third)[1], b"done")
        self.assertEqual(calls.get(timeout=THREAD_TIMEOUT_S), "/third")

    def test_a_stop_names_what_still_runs(self) -> None:
        began = threading.Event()

        def application(environ: Environ, start: Start) -> list[bytes]:
            began.set()
            return self.waiting(environ, start)

        target = WSGI(application, threads=1)
        self.mount("/slow", target)
        _, wire = self.send("GET", "/slow/one")
        self.assertTrue(began.wait(THREAD_TIMEOUT_S))
        with capturedLogs() as events:
            target.stop()
        self.assertEqual([formatEvent(e) for e in events], ["GET /slow/one still runs at the stop"])
        wire.abortConnection()

    def test_only_sensible_values_will_do(self) -> None:
        with self.assertRaisesRegex(TypeError, "a str is not a WSGI application"):
            WSGI("application")  # type: ignore[arg-type]
        for options in ({"threads": 0}, {"queue": -1}):
            with self.assertRaises(ValueError):
                WSGI(self.waiting, **options)

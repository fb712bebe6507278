"""The access log's lines, its bounds, and its file."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError
from pelotontx.net.http import Request
from pelotontx.ops import access_log
from pelotontx.ops.access_log import AccessLog
from pelotontx.wire.http import Framing

HEAD = (
    b'GET /a?b=%22 HTTP/1.1\r\nHost: a\r\nUSER-AGENT:\tcurl/8 "x" \\ \xe9\r\n'
    b"Referer: https://b/?token=1\r\n\r\n"
)


class Channel:
    peer = IPv4Address("TCP", "192.0.2.7", 50321)
    is_secure = False


def request(head: bytes = HEAD, *, method: str = "GET", target: str = "/a?b=%22") -> Request:
    framing = Framing("1.1", b"a", 0, True, False, b"")
    parts = target, target.partition("?")[0], target.partition("?")[2]
    return Request(Channel(), method, parts, framing, head)  # type: ignore[arg-type]


class Reactor(Clock):
    """A clock, and the calls from threads as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    def callFromThread(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        if function is access_log._fire:
            self.stopped.set()


class AccessLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "access.log"
        self.reactor = Reactor()
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def log(self, **options: Any) -> AccessLog:
        wall_clock = lambda: 1_800_000_000 + self.reactor.seconds()  # noqa: E731
        return AccessLog(self.reactor, str(self.path), wall_clock=wall_clock, **options)

    def stop(self, log: AccessLog) -> None:
        self.reactor.stopped.clear()
        stopping = log.stop()
        self.assertTrue(self.reactor.stopped.wait(20))
        self.successResultOf(stopping)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def lines(self, *requests: Request, status: int = 200, **options: Any) -> list[str]:
        log = self.log(**options)
        log.start()
        self.reactor.advance(2.5)
        for one in requests:
            log.answered(one, status, 27, 1.25)
        self.stop(log)
        return self.path.read_text().splitlines()

    def test_a_combined_line_is_as_other_servers_write_it(self) -> None:
        (line,) = self.lines(request())
        found = re.fullmatch(
            r'192\.0\.2\.7 - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "([^"]+)" '
            r'200 27 "([^"]+)" "([^"]+)" 1\.250',
            line,
        )
        assert found is not None, line
        self.assertEqual(found[2], "GET /a?b=%22 HTTP/1.1")
        self.assertEqual(found[3], "https://b/?token=1")
        self.assertEqual(found[4], r"curl/8 \x22x\x22 \x5c \xe9")

    def test_a_json_line_holds_the_same(self) -> None:
        (line,) = self.lines(request(), format="json")
        self.assertEqual(
            json.loads(line),
            {
                "time": 1_800_000_002.5,
                "client": "192.0.2.7",
                "method": "GET",
                "target": "/a?b=%22",
                "version": "1.1",
                "status": 200,
                "bytes": 27,
                "seconds": 1.25,
                "referer": "https://b/?token=1",
                "user_agent": 'curl/8 "x" \\ \\xe9',
            },
        )

    def test_queries_can_be_left_out(self) -> None:
        combined, *_ = self.lines(request(), query=False)
        self.assertIn('"GET /a HTTP/1.1" 200 27 "https://b/" ', combined)
        *_, shown = self.lines(request(), query=False, format="json")
        self.assertEqual(json.loads(shown)["target"], "/a")
        self.assertEqual(json.loads(shown)["referer"], "https://b/")

    def test_nobody_can_write_a_line_of_his_own(self) -> None:
        agent = bytes(byte for byte in range(256) if byte not in b"\r\n")
        head = b'GET /"\\ HTTP/1.1\r\nUser-Agent: ' + agent + b"\r\n\r\n"
        for format in ("combined", "json"):
            self.path.unlink(missing_ok=True)
            (line,) = self.lines(request(head, target='/"\\'), format=format)
            self.assertTrue(line.isprintable(), line)
        self.path.unlink()
        (line,) = self.lines(request(head, target='/"\\'))
        self.assertEqual(line.count('"'), 6)

    def test_a_request_that_could_not_be_read_has_a_line_too(self) -> None:
        (line,) = self.lines(request(b"", method="", target=""), status=400)
        self.assertIn('] "-" 400 27 "-" "-" ', line)

    def test_a_burst_is_written_in_order_and_whole(self) -> None:
        count = 2 * access_log.BATCH + 10
        lines = self.lines(*(request(target=f"/{n}") for n in range(count)))
        self.assertEqual([line.split()[6] for line in lines], [f"/{n}" for n in range(count)])

    def test_an_answer_is_written_soon_without_another_one(self) -> None:
        log = self.log()
        log.start()
        log.answered(request(), 200, 1, 0)
        self.reactor.advance(access_log.BATCH_S)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.stop(log)
        self.assertEqual((log.written, log.dropped), (1, 0))

    def test_a_file_that_was_moved_is_opened_anew(self) -> None:
        log = self.log()
        log.start()
        moved = self.path.with_suffix(".1")
        for target in ("/one", "/two"):
            log.answered(request(target=target), 200, 1, 0)
            self.reactor.advance(1)
            if target == "/one":
                # The thread may look before or after this: either way the line is in one of them.
                os.rename(self.path, moved)
        log.reopen()
        self.stop(log)
        self.assertIn("/two", self.path.read_text())
        self.assertIn("/one", moved.read_text() + self.path.read_text())
        self.assertEqual(log.dropped, 0)

    def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(self) -> None:
        self.path.mkdir()
        log = self.log()
        with self.assertRaisesRegex(ConfigError, "access.log: cannot be opened: Is a directory"):
            log.start()
        self.successResultOf(log.stop())

    def test_what_cannot_be_written_is_dropped_counted_and_told_once(self) -> None:
        log = AccessLog(self.reactor, "/dev/full")
        log.start()
        for _ in range(3):
            log.answered(request(), 200, 1, 0)
            self.reactor.advance(1)
        self.stop(log)
        self.assertEqual((log.written, log.dropped), (0, 3))
        told = [event for event in self.events if event.get("reason") == "No space left on device"]
        self.assertEqual(len(told), 1)

    def test_what_a_hanging_disk_does_not_take_is_dropped_and_counted(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        log = self.log()
        log.start()
        head = b"GET / HTTP/1.1\r\nUser-Agent: " + b"x" * 16000 + b"\r\n\r\n"
        for _ in range(3 * access_log.WAITING_BYTES // 16000):
            log.answered(request(head), 200, 1, 0)
        self.assertGreater(log.dropped, 0)
        self.assertLess(log._file.waiting_bytes, 2 * access_log.WAITING_BYTES)
        stopping = log.stop()
        self.assertNoResult(stopping)
        self.reactor.advance(access_log.STOP_S)
        self.successResultOf(stopping)

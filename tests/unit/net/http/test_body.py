"""A request's body while it arrives: who reads it, who waits, and what ends it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http.body import HIGH_BYTES, RequestBody
from pelotontx.wire.http import RefusedRequest

T = TypeVar("T")


class Recorder:
    def __init__(self) -> None:
        self.said: list[str] = []

    def body_wanted(self) -> None:
        self.said.append("wanted")

    def pause_body(self) -> None:
        self.said.append("pause")

    def resume_body(self) -> None:
        self.said.append("resume")


def run(coroutine: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    return Deferred.fromCoroutine(coroutine)


async def take(body: RequestBody) -> bytes:
    return await body.__anext__()


class RequestBodyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.source = Recorder()
        self.body = RequestBody(self.source, None, limit_bytes=1_000_000)

    def test_pieces_are_given_as_they_come(self) -> None:
        self.body.feed(b"one")
        self.assertEqual(self.successResultOf(run(take(self.body))), b"one")
        waiting = run(take(self.body))
        self.assertNoResult(waiting)
        self.assertEqual(self.source.said, ["wanted"])
        self.body.feed(b"two")
        self.assertEqual(self.successResultOf(waiting), b"two")

    def test_what_was_gathered_is_not_kept_by_the_error(self) -> None:
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        reading = run(self.body.read())
        for _ in range(9):
            self.body.feed(bytes(100_000))
        reading.cancel()
        error = self.failureResultOf(reading, CancelledError)
        self.assertIsNotNone(error.getTracebackObject())
        self.assertLess(tracemalloc.get_traced_memory()[0], 500_000)

    def test_all_of_it_is_read_at_once(self) -> None:
        reading = run(self.body.read())
        self.body.feed(b"one")
        self.body.feed(b"two", is_last=True)
        self.assertEqual(self.successResultOf(reading), b"onetwo")
        self.assertTrue(self.body.is_complete)
        self.assertEqual(self.successResultOf(run(self.body.read())), b"")

    def test_source_is_paused_while_too_much_is_unread(self) -> None:
        self.body.feed(b"x" * HIGH_BYTES)
        self.assertEqual(self.source.said, [])
        self.body.feed(b"y")
        self.body.feed(b"z" * HIGH_BYTES)
        self.assertEqual(self.source.said, ["pause"])
        self.successResultOf(run(take(self.body)))
        self.successResultOf(run(take(self.body)))
        self.assertEqual(self.source.said, ["pause"])
        self.successResultOf(run(take(self.body)))
        self.assertEqual(self.source.said, ["pause", "resume"])

    def test_last_piece_pauses_nobody(self) -> None:
        self.body.feed(b"x" * (HIGH_BYTES + 1), is_last=True)
        self.assertEqual(self.source.said, [])

    def test_announced_length_past_the_limit_is_refused_before_anything_is_waited_for(self) -> None:
        body = RequestBody(self.source, 11, limit_bytes=10)
        error = self.failureResultOf(run(body.read()), RefusedRequest).value
        self.assertEqual((error.status, self.source.said), (413, []))

    def test_chunks_past_the_limit_are_refused_as_they_come(self) -> None:
        self.body.limit_bytes = 10
        reading = run(self.body.read())
        self.body.feed(b"0123456789")
        self.assertNoResult(reading)
        self.body.feed(b"x")
        self.assertEqual(self.failureResultOf(reading, RefusedRequest).value.status, 413)

    def test_limit_may_be_raised(self) -> None:
        body = RequestBody(self.source, 11, limit_bytes=10)
        body.limit_bytes = 11
        body.feed(b"0123456789a", is_last=True)
        self.assertEqual(self.successResultOf(run(body.read())), b"0123456789a")

    def test_failure_follows_what_was_received(self) -> None:
        self.body.feed(b"some")
        self.body.fail(RefusedRequest(408, "slow"))
        self.assertEqual(self.successResultOf(run(take(self.body))), b"some")
        for _ in range(2):
            self.failureResultOf(run(take(self.body)), RefusedRequest)

    def test_failure_reaches_who_waits_and_ends_the_body(self) -> None:
        waiting = run(take(self.body))
        self.body.fail(RefusedRequest(400, "malformed chunk"))
        self.failureResultOf(waiting, RefusedRequest)
        self.body.feed(b"late", is_last=True)
        self.assertFalse(self.body.is_complete)

    def test_complete_body_cannot_fail(self) -> None:
        self.body.feed(b"all", is_last=True)
        self.body.fail(RefusedRequest(400, "connection lost"))
        self.assertEqual(self.successResultOf(run(self.body.read())), b"all")

    def test_unread_bytes_are_not_kept_one_by_one(self) -> None:
        for _ in range(10_000):
            self.body.feed(b"x")
        sizes = []
        for _ in range(3):
            sizes.append(len(self.successResultOf(run(take(self.body)))))
        self.assertEqual(sizes, [4096, 4096, 1808])

    def test_two_readers_are_one_too_many(self) -> None:
        waiting = run(take(self.body))
        self.failureResultOf(run(take(self.body)), LocalProtocolError)
        self.body.feed(b"x")
        self.assertEqual(self.successResultOf(waiting), b"x")

    def test_cancelled_reader_loses_nothing(self) -> None:
        waiting = run(take(self.body))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.body.feed(b"x")
        self.assertEqual(self.successResultOf(run(take(self.body))), b"x")

    def test_body_that_is_there_already(self) -> None:
        self.assertEqual(self.successResultOf(run(RequestBody.of(b"abc").read())), b"abc")
        self.assertEqual(self.successResultOf(run(RequestBody.of(b"").read())), b"")

"""Requests that could be understood in two ways: none is accepted, however it is cut."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol

from pelotontx.net.http import Request, Response, Upgrade
from tests.support.hostile_http import CLEAR, HOSTILE
from tests.support.http_case import GET, HTTPCase, Wire

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class VectorCase(HTTPCase):
    def handle(self, request: Request) -> Any:
        """Reads the body, as an application does, and upgrades who wants that."""
        result = super().handle(request)
        return Upgrade(Protocol()) if request.framing.upgrade and request.is_complete else result

    def feed(self, raw: bytes, step: int) -> Wire:
        connection, wire = self.connect()
        for position in range(0, len(raw), step):
            connection.dataReceived(raw[position : position + step])
        return wire


class HostileTests(VectorCase):
    def check(self, name: str, raw: bytes, status: int, step: int) -> None:
        """One error answers it, no handler got it whole, and what follows is not answered."""
        wire = self.feed(raw + GET, step)
        answer = wire.taken().removeprefix(CONTINUE)
        self.assertEqual(answer[9:12], b"%d" % status, (name, answer))
        self.assertEqual(answer.count(b"Server: "), 1, name)
        self.assertIn(b"Connection: close\r\n", answer, name)
        self.assertTrue(wire.ended, name)
        upgrades = b"Upgrade: " in raw
        self.assertTrue(upgrades or not self.requests, name)
        self.requests.clear()

    def test_there_are_enough_of_them_and_each_has_a_name(self) -> None:
        self.assertGreaterEqual(len(HOSTILE), 250)
        self.assertEqual(len({name for name, _, _ in HOSTILE}), len(HOSTILE))
        self.assertEqual(len({raw for _, raw, _ in HOSTILE}), len(HOSTILE))

    def test_no_ambiguous_request_is_accepted(self) -> None:
        for name, raw, status in HOSTILE:
            self.check(name, raw, status, len(raw + GET))

    def test_nor_byte_by_byte(self) -> None:
        for name, raw, status in HOSTILE:
            if len(raw) < 10_000:
                self.check(name, raw, status, 1)

    def test_nor_in_other_pieces(self) -> None:
        for name, raw, status in HOSTILE:
            for step in (2, 7, 40) if len(raw) < 10_000 else (4096,):
                self.check(name, raw, status, step)

    def test_nor_behind_a_good_request_with_the_same_fields(self) -> None:
        for name, raw, status in HOSTILE:
            connection, wire = self.connect()
            connection.dataReceived(GET)
            wire.taken()
            connection.dataReceived(raw)
            self.assertEqual(wire.taken()[9:12], b"%d" % status, name)
            if b"Upgrade: " not in raw:
                self.assertEqual(len(self.requests), 1, name)
            self.requests.clear()

    def test_nor_pipelined_behind_good_ones_which_are_answered(self) -> None:
        upload = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy"
        for name, raw, status in HOSTILE:
            answer = self.feed(GET + upload + raw + GET, 1 << 20).taken()
            self.assertEqual(answer.count(b"Server: "), 3, (name, answer))
            _, first, second, third = answer.split(b"HTTP/1.1 ", 3)
            self.assertTrue(first.endswith(b"GET /"), name)
            self.assertTrue(second.endswith(b"POST /axy"), name)
            self.assertEqual(third[:3], b"%d" % status, name)

    def test_good_requests_after_bad_ones_are_judged_afresh(self) -> None:
        for _, raw, _ in HOSTILE:
            self.exchange(raw)
            answer, _ = self.exchange(GET)
            self.assertEqual(answer[9:12], b"200")


class ClearTests(VectorCase):
    def test_unusual_but_clear_requests_are_accepted_however_they_are_cut(self) -> None:
        for name, raw, body in CLEAR:
            for step in (len(raw), 1, 2, 7):
                wire = self.feed(raw, step)
                answer = wire.taken().removeprefix(CONTINUE)
                self.assertEqual(answer[9:12], b"200", (name, step, answer))
                (request,) = self.requests
                self.assertEqual(request.body, body, (name, step))
                self.assertTrue(b"HTTP/1.0" in raw or not wire.ended, name)
                self.requests.clear()

    def test_they_may_follow_one_another(self) -> None:
        self.factory.last_request = 10_000
        ones = [(raw, body) for _, raw, body in CLEAR if b"HTTP/1.0" not in raw]
        wire = self.feed(b"".join(raw for raw, _ in ones), 1 << 20)
        self.assertEqual(wire.taken().count(b"HTTP/1.1 200"), len(ones))
        self.assertEqual([request.body for request in self.requests], [body for _, body in ones])
        self.assertIsInstance(self.handle(self.requests[0]), Response)

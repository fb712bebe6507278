"""Random conversations: requests of every kind in one stream of bytes, cut anywhere.

Whatever handlers do with bodies, and however slowly the peer reads, each answer belongs to its
request, in order; where one is missing, the connection said that it ends and ended. A peer may
leave at any time, and nothing stays behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from pelotontx.net.http import HTTPConnection, Request, Response
from tests.support.http_case import HTTPCase, Wire

#: What handlers do: read all, piece by piece, not at all, answer with what they read while they
#: read it; at once, or when they are told to go on.
KINDS = ("whole", "pieces", "ignore", "echo", "late", "late-ignore", "late-echo")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SEEDS = 1000

#: Deeds of one conversation: far more than any takes, so that one that stands still ends.
DEEDS = 100_000


class Conversation:
    """A stream of requests, and what answers them.

    Attributes:
        raw: all bytes.
        expected: for each request its kind and the answer's body.
    """

    def __init__(self, random: Random) -> None:
        self.raw = b""
        self.expected: list[tuple[str, bytes]] = []
        for number in range(random.randrange(1, 8)):
            kind = random.choice(KINDS)
            body = b"%d:" % number * random.choice((0, 1, 5, 60))
            method = random.choice((b"GET", b"POST"))
            head = b"%b /%b HTTP/1.1\r\nHost: a\r\n" % (method, kind.encode())
            if method == b"GET":
                body = b""
            elif random.random() < 0.5:
                head += b"Content-Length: %d\r\n" % len(body)
            else:
                head += b"Transfer-Encoding: chunked\r\n"
            if method == b"POST" and random.random() < 0.3:
                head += b"Expect: 100-continue\r\n"
            sent = self._chunks(random, body) if b"chunked" in head else body
            self.raw += head + b"\r\n" + sent
            self.expected.append((kind, b"ignored" if "ignore" in kind else body))

    @staticmethod
    def _chunks(random: Random, body: bytes) -> bytes:
        raw = b""
        while body:
            size = random.randrange(1, len(body) + 1)
            raw += b"%x\r\n%b\r\n" % (size, body[:size])
            body = body[size:]
        return raw + random.choice((b"0\r\n\r\n", b"000;x\r\nX-Sum: 1\r\n\r\n"))

    def cuts(self, random: Random) -> list[bytes]:
        """The bytes in reads of any size."""
        pieces, position = [], 0
        longest = random.choice((1, 10, 100, 10_000))
        while position < len(self.raw):
            size = random.randrange(1, longest + 1)
            pieces.append(self.raw[position : position + size])
            position += size
        return pieces


class ConversationTests(HTTPCase):
    def setUp(self) -> None:
        super().setUp()
        self.held: list[Deferred[None]] = []
        self.told: list[int] = []
        self.factory.on_answered = lambda request, status, *_: self.told.append(status)

    def handle(self, request: Request) -> Any:
        self.requests.append(request)
        kind = request.path[1:]
        if kind == "ignore":
            return Response(200, b"ignored")
        if kind == "echo":
            return Response(200, self.pieces(request))
        return self.answer(request, kind)

    async def answer(self, request: Request, kind: str) -> Response:
        if kind.startswith("late"):
            self.held.append(Deferred())
            await self.held[-1]
        if kind == "late-ignore":
            return Response(200, b"ignored")
        if kind == "late-echo":
            return Response(200, self.pieces(request))
        if kind == "whole":
            return Response(200, await request.stream.read())
        return Response(200, b"".join([piece async for piece in request.stream]))

    async def pieces(self, request: Request) -> AsyncIterator[bytes]:
        async for piece in request.stream:
            yield piece

    def talk(
        self, random: Random, pieces: list[bytes], *, leaves: bool = False
    ) -> tuple[HTTPConnection, Wire]:
        """Says everything, with handlers going on and the peer reading now and then."""
        connection, wire = self.connect()
        choked = False
        for _ in range(random.randrange(len(pieces) * 2) if leaves else DEEDS):
            if not (pieces or self.held or choked) or (wire.ended and not self.held):
                return connection, wire
            deed = random.random()
            if deed < 0.6 and pieces and wire.producerState == "producing" and not wire.ended:
                connection.dataReceived(pieces.pop(0))
            elif deed < 0.7 and wire.producer is not None:
                choked = not choked
                (connection.pauseProducing if choked else connection.resumeProducing)()
            elif deed < 0.9 and self.held:
                self.held.pop(0).callback(None)
        if not leaves:
            raise AssertionError("the conversation stands still")
        return connection, wire

    def check(self, seed: int) -> None:
        random = Random(seed)
        conversation = Conversation(random)
        _, wire = self.talk(random, conversation.cuts(random))
        answers = read_answers(wire.taken())
        self.assertLessEqual(len(answers), len(conversation.expected), seed)
        for (head, body), (kind, expected) in zip(answers, conversation.expected, strict=False):
            self.assertEqual((head[9:12], body), (b"200", expected), (seed, kind))
        self.assertFalse(wire.aborted, seed)
        if len(answers) < len(conversation.expected):
            head, _ = answers[-1]
            self.assertIn("ignore", conversation.expected[len(answers) - 1][0], seed)
            self.assertIn(b"Connection: close", head, seed)
        self.assertEqual(wire.ended, b"Connection: close" in answers[-1][0], seed)
        self.assertEqual(self.told, [200] * len(answers), seed)
        self.told.clear()

    def check_leaving(self, seed: int) -> None:
        random = Random(seed)
        conversation = Conversation(random)
        connection, _ = self.talk(random, conversation.cuts(random), leaves=True)
        connection.connectionLost(Failure(ConnectionDone()))
        for held in self.held:
            held.callback(None)  # who was cancelled does not hear of it
        self.assertEqual(len(self.told), len(self.requests), seed)
        self.assertLessEqual(set(self.told), {200, 499}, seed)
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(len(self.wheel), 0, seed)
        for kept in (self.held, self.told, self.requests):
            kept.clear()

    def test_nothing_stays_behind_of_a_peer_that_leaves(self) -> None:
        for seed in range(SEEDS):
            self.check_leaving(seed)

    def test_each_answer_belongs_to_its_request(self) -> None:
        for seed in range(SEEDS):
            self.check(seed)


def read_answers(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Heads and bodies of a stream of whole responses."""
    answers = []
    while raw:
        raw = raw.removeprefix(CONTINUE)
        head, _, raw = raw.partition(b"\r\n\r\n")
        if b"chunked" in head:
            body = b""
            while True:
                line, _, raw = raw.partition(b"\r\n")
                size = int(line, 16)
                body, raw = body + raw[:size], raw[size + 2 :]
                if not size:
                    break
        else:
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            body, raw = raw[:size], raw[size:]
        answers.append((head, body))
    return answers

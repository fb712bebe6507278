"""Bodies on real sockets, in both directions; and everything hostile, at one server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater

from pelotontx.net.http import BodyWriter, HTTPLimits, Response, Upgrade
from pelotontx.net.http.body import HIGH_BYTES
from pelotontx.web import Request
from tests.support.conversation import LIMIT_S, Conversation, certificate
from tests.support.hostile_http import CLEAR, HOSTILE
from tests.support.http_site import Site, get, serving

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

#: Connections at once, of the hostile ones.
_CROWD = 40


def post(length: int, extra: bytes = b"") -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
    return head % (length, extra)


async def say_in_turns(client: Conversation, data: bytes, step: int) -> None:
    """Each piece in a turn of its own."""
    for position in range(0, len(data), step):
        if client.is_over:
            return
        client.say(data[position : position + step])
        await deferLater(reactor, 0)


async def echo(request: Request) -> AsyncIterator[bytes]:
    request.stream.limit_bytes = 100_000_000
    async for piece in request.stream:
        yield piece


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_upload_waits_in_the_sockets_while_nobody_reads_it() -> None:
    release: Deferred[None] = Deferred()
    requests: list[Request] = []

    async def receive(request: Request) -> str:
        requests.append(request)
        request.stream.limit_bytes = 30_000_000
        await release
        size = 0
        async for piece in request.stream:
            size += len(piece)
        return f"{size} bytes"

    async with serving() as site:
        site.app.get(r"^/$")(lambda _: "x")
        site.app.post(r"^/$", stream=True)(receive)
        client, other = await site.call(), await site.call()
        client.say(post(20_000_000) + b"z" * 20_000_000)
        while not requests or requests[0].stream.received <= HIGH_BYTES:
            await site.turns(other)
        seen = requests[0].stream.received
        await site.turns(other)
        assert requests[0].stream.received == seen <= HIGH_BYTES + 65536
        release.callback(None)
        await client.until(b"20000000 bytes")


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_answer_leaves_while_the_request_is_coming() -> None:
    async with serving() as site:
        site.app.post(r"^/$", stream=True)(lambda request: Response(200, echo(request)))
        client = await site.call()
        client.say(CHUNKED + b"5\r\nfirst\r\n")
        await client.until(b"5\r\nfirst\r\n")
        client.say(b"6\r\nsecond\r\n")
        await client.until(b"6\r\nsecond\r\n")
        for _ in range(200):
            client.say(b"%x\r\n%b\r\n" % (50_000, b"z" * 50_000))
        client.say(b"0\r\n\r\n" + CHUNKED + b"0\r\n\r\n")
        answer = await client.until(b"\r\n0\r\n\r\n", 2)
        assert answer.count(b"z") == 10_000_000
        assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest_twisted.ensureDeferred
async def test_client_that_expects_100_hears_of_it_or_of_the_refusal() -> None:
    async with serving() as site:
        site.app.post(r"^/$")(lambda request: request.body)
        client = await site.call()
        client.say(post(5, b"Expect: 100-continue\r\n"))
        assert await client.until(b"\r\n\r\n") == CONTINUE
        client.say(b"hello")
        assert (await client.until(b"hello")).startswith(CONTINUE + b"HTTP/1.1 200 OK")
        client = await site.call()
        client.say(post(2_000_000, b"Expect: 100-continue\r\n"))
        assert (await client.until(None)).startswith(b"HTTP/1.1 413 ")


@pytest_twisted.ensureDeferred
async def test_slow_body_is_refused() -> None:
    limits = HTTPLimits(body_idle_s=0.2, linger_s=0.1)
    async with serving(limits) as site:
        site.app.post(r"^/$")(lambda request: request.body)
        client = await site.call()
        client.say(post(10) + b"hello")
        assert (await client.until(None)).startswith(b"HTTP/1.1 408 ")


@pytest_twisted.ensureDeferred
async def test_early_answer_reaches_a_client_that_is_still_sending() -> None:
    async with serving() as site:
        site.app.post(r"^/$", stream=True)(lambda _: Response(403, b"not you"))
        site.app.get(r"^/$")(lambda _: "x")
        client = await site.call()
        client.say(post(20_000_000) + b"z" * 20_000_000)
        answer = await client.until(b"not you")
        assert b"Connection: close\r\n" in answer
        await client.until(None)
        client = await site.call()
        client.say(post(40_000))
        await client.until(b"not you")
        client.say(b"z" * 40_000 + get("/"))
        assert (await client.until(b"\r\n\r\nx")).count(b"HTTP/1.1 ") == 2


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_bodies_go_through_tls_in_both_directions(tmp_path: Path) -> None:
    site = Site()
    await site.listen(f"ssl:0:interface=127.0.0.1:privateKey={certificate(tmp_path)}")
    try:
        site.app.post(r"^/$", stream=True)(lambda request: Response(200, echo(request)))
        site.app.post(r"^/no$", stream=True)(lambda _: Response(403, b"not you"))
        endpoint = SSL4ClientEndpoint(
            reactor, "127.0.0.1", site.number, CertificateOptions(verify=False)
        )
        client = await connectProtocol(endpoint, Conversation())
        client.say(post(3_000_000) + b"z" * 3_000_000)
        answer = await client.until(b"\r\n0\r\n\r\n")
        assert answer.count(b"z") == 3_000_000
        client.say(post(3_000_000).replace(b"/ ", b"/no ") + b"z" * 3_000_000)
        assert b"Connection: close\r\n" in await client.until(b"not you")
        await client.until(None)
    finally:
        await site.stop()


@pytest_twisted.ensureDeferred
async def test_upload_is_cancelled_when_its_client_leaves() -> None:
    started: Deferred[None] = Deferred()
    ended: Deferred[None] = Deferred()

    async def receive(request: Request) -> None:
        try:
            async for _ in request.stream:
                if not started.called:
                    started.callback(None)
        finally:
            ended.callback(None)

    async with serving() as site:
        site.app.post(r"^/$", stream=True)(receive)
        client = await site.call()
        client.say(post(100) + b"half")
        await started.addTimeout(LIMIT_S, reactor)
        client.transport.loseConnection()  # type: ignore[union-attr]
        await ended.addTimeout(LIMIT_S, reactor)


@pytest_twisted.ensureDeferred
async def test_counter_stops_when_its_reader_leaves() -> None:
    ended: Deferred[int] = Deferred()

    async def count(writer: BodyWriter) -> None:
        number = 0
        try:
            while True:
                number += 1
                await writer.write(b"%d\n" % number)
                await deferLater(reactor, 0.01)
        finally:
            ended.callback(number)

    async with serving() as site:
        site.app.get(r"^/$")(lambda _: Response(200, count))
        client = await site.call()
        client.say(get("/"))
        await client.until(b"\r\n5\n\r\n")
        client.transport.loseConnection()  # type: ignore[union-attr]
        assert await ended.addTimeout(LIMIT_S, reactor) >= 5


def _answers(request: Request) -> Any:
    return Upgrade(Conversation()) if request.framing.upgrade else request.body


class Crowd:
    """Clients that say what they say, so many at once."""

    def __init__(self, site: Site, step: int | None) -> None:
        self._site = site
        self._step = step

    async def each(self, vectors: list[tuple[str, bytes, Any]]) -> dict[str, bytes]:
        """What answers each vector, until the connection ends."""
        answers: dict[str, bytes] = {}
        waiting = iter(vectors)

        async def one_after_another() -> None:
            for name, raw, _ in waiting:
                answers[name] = await self._answer(raw)

        await gatherResults(
            [Deferred.fromCoroutine(one_after_another()) for _ in range(_CROWD)],
            consumeErrors=True,
        )
        return answers

    async def _answer(self, raw: bytes) -> bytes:
        client = await self._site.call()
        await say_in_turns(client, raw, self._step or len(raw))
        return (await client.until(None)).removeprefix(CONTINUE)


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "byte by byte"])
@pytest_twisted.ensureDeferred
async def test_no_hostile_request_is_accepted(step: int | None) -> None:
    vectors = [vector for vector in HOSTILE if step is None or len(vector[1]) < 1000]
    async with serving(HTTPLimits(linger_s=0.2)) as site:
        for method in ("GET", "POST"):
            site.app.route(method, r"^/")(_answers)
        answers = await Crowd(site, step).each(vectors)
        for name, _, status in vectors:
            answer = answers[name]
            assert answer[9:12] == b"%d" % status, (name, answer[:200])
            assert answer.count(b"\r\nServer: ") == 1, name
        other = await site.call()
        await site.turns(other)
    assert len(answers) == len(vectors) > 120


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "byte by byte"])
@pytest_twisted.ensureDeferred
async def test_unusual_but_clear_requests_are_accepted(step: int | None) -> None:
    vectors = [vector for vector in CLEAR if len(vector[1]) < 1000]  # longer paths are not routed
    async with serving() as site:
        site.factory.last_request = 1  # of a connection: it ends after the answer
        for method in ("GET", "POST", "OPTIONS"):
            site.app.route(method, r"^[/*]")(_answers)
        answers = await Crowd(site, step).each(vectors)
        for name, _, body in vectors:
            assert answers[name][9:12] == b"200", (name, answers[name])
            assert answers[name].endswith(b"\r\n\r\n" + body), (name, answers[name])

"""Peers that do not read, flood, vanish or break the protocol, against the real server.

Each is a raw socket. Beside it stands a client that must not notice anything.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from tests.support.raw_websocket import (
    ACK,
    CALL,
    EVNT,
    NACK,
    RES,
    SUB,
    RawWebSocket,
    WatchedServer,
    call,
    message,
    subscribe,
)
from tests.support.servers import eventually
from tests.support.websocket_peer import (
    BINARY,
    CLOSE,
    MASK,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
    request,
)

BASE = """
[broker]
url = "memory:"
[[callee]]
object = "pelotontx.demo.callee:callee"
[server]
drain_timeout = "200ms"
"""
ANY_RATE = "[rpc]\nmessage_rate = 0\n"

#: Close to the longest message that a client may send.
BIG = "x" * 60_000

#: What the kernel keeps for a peer that reads little: some of what is sent is out of our hands.
LITTLE = 4096

Start = Callable[..., Any]


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a server with these further lines of configuration."""
    servers: list[WatchedServer] = []

    async def start(lines: str = "") -> WatchedServer:
        (tmp_path / "peloton.toml").write_text(BASE + lines)
        server = WatchedServer(reactor, "--config", "peloton.toml", folder=tmp_path)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.__aexit__()
        assert "Traceback" not in server.output, server.output


def peak_memory_bytes(server: WatchedServer) -> int:
    """The most that the server's process has had."""
    status = Path(f"/proc/{server.child.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def flood_until_the_end(server: WatchedServer, peer: RawWebSocket, data: bytes) -> None:
    """Says the same again and again until it is cut off; others are served meanwhile."""
    for _ in range(1000):
        if peer.is_over:
            return
        peer.say(data)
        assert (await server.get("/health"))[0] == 200
    pytest.fail("the flood goes on")


class TestSlowConsumers:
    @pytest_twisted.ensureDeferred
    async def test_unread_events_are_4008_and_other_subscribers_get_all(self, start: Start) -> None:
        server = await start(ANY_RATE + '[websocket]\nclose_timeout = "30s"')
        slow = await server.open_raw(receive_bytes=LITTLE)
        slow.say(subscribe("c"))
        await slow.gets(ACK)
        slow.stop_reading()
        seen: list[int] = []
        reader, publisher = await server.client(), await server.client()
        await reader.subscribe("c", lambda event: seen.append(event.args[0]))
        published = 0
        while not await server.metric("slow_consumers_total"):
            assert published < 1000
            for _ in range(10):
                await publisher.publish("c", [published, BIG])
                published += 1
        await eventually(reactor, lambda: len(seen) == published)
        assert seen == list(range(published))
        slow.read_again()
        code, reason = await slow.closes()
        assert (code, reason) == (4008, "slow consumer: more than 1048576 bytes unread")
        events = [event["args"][0] for event in slow.messages(EVNT)]
        assert events == list(range(len(events)))  # what it missed, it missed at the end
        slow.say(close_frame(4008))
        await slow.ends()
        await server.until_metric("topics", 1)

    @pytest_twisted.ensureDeferred
    async def test_unread_results_are_4008(self, start: Start) -> None:
        server = await start(ANY_RATE + '[websocket]\nclose_timeout = "30s"')
        slow = await server.open_raw(receive_bytes=LITTLE)
        slow.stop_reading()
        asked = 0
        while not await server.metric("slow_consumers_total"):
            assert asked < 1000
            slow.say(call("test.echo", BIG) * 10)
            asked += 10
        slow.read_again()
        assert (await slow.closes())[0] == 4008
        await server.until_metric("calls_pending", 0)
        assert await (await server.client()).call("test.echo", 1) == 1

    @pytest_twisted.ensureDeferred
    async def test_unread_pongs_are_4008(self, start: Start) -> None:
        server = await start('[websocket]\nclose_timeout = "30s"\nframe_rate = 0')
        slow = await server.open_raw(receive_bytes=LITTLE)
        slow.stop_reading()
        pings = frame(PING, b"x" * 125) * 2000
        for _ in range(100):
            slow.say(pings)
            if await server.metric("slow_consumers_total"):
                break
        slow.read_again()
        assert (await slow.closes())[0] == 4008

    @pytest_twisted.ensureDeferred
    async def test_those_who_never_read_are_aborted_and_take_little_memory(
        self, start: Start
    ) -> None:
        server = await start(ANY_RATE + '[websocket]\nclose_timeout = "100ms"')
        slow = [await server.open_raw(receive_bytes=LITTLE) for _ in range(20)]
        for peer in slow:
            peer.say(subscribe("c"))
        for peer in slow:
            await peer.gets(ACK)
            peer.stop_reading()
        publisher = await server.client()
        await publisher.publish("c", BIG)
        before = peak_memory_bytes(server)
        for _ in range(30):  # 20 x 18 MB
            await gatherResults([publisher.publish("c", BIG) for _ in range(10)])
        await server.until_metric("juggler_sessions", 1)
        assert await server.metric("slow_consumers_total") == 20
        assert await server.metric("topics") == 0
        assert peak_memory_bytes(server) - before < 100_000_000
        for peer in slow:
            peer.read_again()
            await peer.ends()


class TestFloods:
    @pytest_twisted.ensureDeferred
    async def test_messages_past_the_rate_are_nacked_then_4029(self, start: Start) -> None:
        server = await start()
        other = await server.client()
        flood = await server.open_raw()
        flood.say(subscribe("c") * 1000)
        call_of_another = other.call("test.echo", 1)
        assert (await flood.closes())[0] == 4029
        refused = flood.messages(NACK)
        assert len(flood.messages(ACK)) >= 100
        assert len(refused) >= 100
        assert {answer["code"] for answer in refused} == {429}
        assert await server.metric("limits_exceeded_total") == len(refused) + 1
        assert await call_of_another == 1
        await server.until_metric("juggler_sessions", 1)

    @pytest_twisted.ensureDeferred
    async def test_a_flood_that_goes_on_after_the_close_is_cut_off(self, start: Start) -> None:
        server = await start('[websocket]\nclose_timeout = "5m"')
        flood = await server.open_raw()
        await flood_until_the_end(server, flood, subscribe("c") * 1000)
        assert flood.control(CLOSE)[0][:2] == (4029).to_bytes(2, "big")

    @pytest.mark.parametrize(
        "frames",
        [
            frame(PING),
            frame(PONG, b"unasked"),
            frame(TEXT, message(SUB, channel="c"), fin=False) + frame(0, fin=False) * 20 + frame(0),
        ],
        ids=["pings", "pongs", "fragments"],
    )
    @pytest_twisted.ensureDeferred
    async def test_frames_that_are_no_messages_have_a_rate_too(
        self, start: Start, frames: bytes
    ) -> None:
        server = await start('[websocket]\nframe_rate = 500\nclose_timeout = "5m"')
        flood = await server.open_raw()
        await flood_until_the_end(server, flood, frames * 100)
        assert await flood.closes() == (1008, "too many frames")
        await server.until_metric("juggler_sessions", 0)


class TestDeadPeers:
    @pytest.mark.parametrize("reads", [True, False], ids=["mute", "vanished"])
    @pytest_twisted.ensureDeferred
    async def test_no_pong_is_the_end_of_all_that_the_session_had(
        self, start: Start, reads: bool
    ) -> None:
        server = await start('[websocket]\nping_interval = "200ms"\npong_timeout = "200ms"')
        dead = await server.open_raw()
        dead.say(subscribe("c") + call("test.delay", "60000"))
        await dead.gets(ACK, 2)
        if not reads:
            dead.stop_reading()
        await server.until_metric("juggler_sessions", 0)
        assert await server.metric("calls_pending") == 0
        assert await server.metric("topics") == 0
        assert await server.metric("websocket_connections") == 0
        dead.read_again()
        await dead.ends()
        assert len(dead.control(PING)) == 1

    @pytest_twisted.ensureDeferred
    async def test_who_answers_pings_stays(self, start: Start) -> None:
        server = await start('[websocket]\nping_interval = "50ms"\npong_timeout = "5s"')
        alive = await server.open_raw()
        for count in range(1, 6):
            await eventually(reactor, lambda: len(alive.control(PING)) >= count)  # noqa: B023
            alive.say(frame(PONG, alive.control(PING)[-1]))
        alive.say(subscribe("c"))
        await alive.gets(ACK)


class TestOpening:
    @pytest.mark.parametrize("said", [b"", request()[:60], request()[:-2]], ids=len)
    @pytest_twisted.ensureDeferred
    async def test_a_handshake_that_does_not_end_is_dropped(
        self, start: Start, said: bytes
    ) -> None:
        server = await start('[http]\nhead_timeout = "200ms"')
        half = server.connect_raw()
        half.say(said)
        await half.ends()
        assert half.head.startswith(b"HTTP/1.1 408 " if said else b"")
        await server.until_metric("http_connections", 1)  # who asks


class TestLimits:
    """The limits of production: nothing is configured but the rate of messages."""

    @pytest_twisted.ensureDeferred
    async def test_a_message_of_64_kib_and_not_a_byte_more(self, start: Start) -> None:
        server = await start(ANY_RATE)
        peer = await server.open_raw()
        text = message(CALL, uri="test.echo", timeout=0, args="")
        text = text.replace(b'""', b'"%b"' % (b"x" * (65536 - len(text))))
        peer.say(frame(TEXT, text))
        half = frame(TEXT, text[:40_000], fin=False)
        peer.say(half + frame(0, text[40_000:]))
        await peer.gets(RES, 2)
        for longer in (frame(TEXT, text + b" "), half + frame(0, text[40_000:] + b" ")):
            peer = await server.open_raw()
            peer.say(longer)
            assert (await peer.closes())[0] == 1009
            assert peer.messages(ACK, RES, NACK) == []

    @pytest_twisted.ensureDeferred
    async def test_1024_fragments_and_not_one_more(self, start: Start) -> None:
        server = await start(ANY_RATE)
        text = message(CALL, uri="test.echo", timeout=0, args="x" * 2000)
        pieces = [frame(TEXT, text[:1], fin=False)]
        pieces += [frame(0, text[n : n + 1], fin=False) for n in range(1, 1023)]
        peer = await server.open_raw()
        peer.say(b"".join(pieces) + frame(0, text[1023:]))
        await peer.gets(RES)
        peer = await server.open_raw()
        peer.say(b"".join(pieces) + frame(0, fin=False) + frame(0, text[1023:]))
        assert (await peer.closes())[0] == 1009

    @pytest_twisted.ensureDeferred
    async def test_fragments_of_a_call_with_pings_between(self, start: Start) -> None:
        server = await start()
        text = message(CALL, uri="test.echo", timeout=0, args="ä€😀" * 100)
        peer = await server.open_raw()
        cuts = [*range(0, len(text), 50), len(text)]
        for begin, end in pairwise(cuts):
            opcode = 0 if begin else TEXT
            peer.say(frame(opcode, text[begin:end], fin=False) + frame(PING, b"%d" % begin))
        peer.say(frame(0))
        (answer,) = await peer.gets(RES)
        assert answer["args"] == "ä€😀" * 100
        assert peer.control(PONG) == [b"%d" % cut for cut in cuts[:-1]]

    @pytest.mark.parametrize("length", [65537, 2**32, 2**63 - 1])
    @pytest_twisted.ensureDeferred
    async def test_a_frame_too_long_is_1009_when_it_is_announced(
        self, start: Start, length: int
    ) -> None:
        peer = await (await start()).open_raw()
        peer.say(b"\x81\xff" + length.to_bytes(8, "big") + MASK)
        assert (await peer.closes())[0] == 1009

    @pytest.mark.parametrize(
        ("said", "code"),
        [
            (frame(TEXT, b"{}", mask=b""), 1002),
            (b"\x81\xff" + (2**63).to_bytes(8, "big") + MASK, 1002),
            (frame(PING, b"x" * 126), 1002),
            (frame(TEXT, b"x", rsv=4), 1002),
            (frame(TEXT, b"\xff"), 1007),
            (frame(TEXT, b"{"), 1007),
            (frame(BINARY, b"{}"), 1003),
        ],
        ids=["unmasked", "2^63", "long ping", "compressed", "not UTF-8", "not JSON", "binary"],
    )
    @pytest_twisted.ensureDeferred
    async def test_what_breaks_the_protocol_is_told_its_code(
        self, start: Start, said: bytes, code: int
    ) -> None:
        peer = await (await start()).open_raw()
        peer.say(said)
        assert (await peer.closes())[0] == code
        peer.say(close_frame(code))
        await peer.ends()

    @pytest_twisted.ensureDeferred
    async def test_a_frame_byte_by_byte_holds_nobody_up(self, start: Start) -> None:
        server = await start(ANY_RATE)
        other = await server.client()
        peer = await server.open_raw()
        for byte in call("test.echo", "slow"):
            peer.say(bytes((byte,)))
            assert await other.call("test.echo", byte) == byte
        (answer,) = await peer.gets(RES)
        assert answer["args"] == "slow"


class TestClosing:
    @pytest_twisted.ensureDeferred
    async def test_who_does_not_answer_our_close_is_dropped(self, start: Start) -> None:
        server = await start('[websocket]\nclose_timeout = "200ms"')
        peer = await server.open_raw()
        peer.say(frame(BINARY, b"{}"))
        assert (await peer.closes())[0] == 1003
        await peer.ends()
        await server.until_metric("websocket_connections", 0)

    @pytest_twisted.ensureDeferred
    async def test_a_close_is_echoed_and_ends_all_calls(self, start: Start) -> None:
        server = await start()
        peer = await server.open_raw()
        peer.say(call("test.delay", "60000"))
        await peer.gets(ACK)
        peer.say(close_frame(4321, b"enough"))
        assert await peer.closes() == (4321, "enough")
        await peer.ends()
        await server.until_metric("calls_pending", 0)

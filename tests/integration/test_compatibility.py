"""The original's programs against ours, in every combination; models of them, see the package."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from tests.support import raw_juggler
from tests.support.programs import BIN, PelotonServer, Program
from tests.support.raw_juggler import ACK, CALL, EVNT, NACK, PUB, RES, SUB, UNSB, RawPeer
from tests.support.redis_node import until
from tests.support.servers import RedisServer, eventually, free_port, redis_binary

ROOT = Path(__file__).parents[2]
UNLIMITED = "[rpc]\nmessage_rate = 0\npatterns = true\ncalls_limit = 1000\n"

# A callee of ours that notes each call that it runs, as theirs does with --executions.
OUR_CALLEE = """
import os
from pelotontx.backend.callee import Callee

log = os.open("ours.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
callee = Callee()

@callee.function("test.echo")
def echo(args):
    os.write(log, f"{args}\\n".encode())
    return args
"""


class Meeting:
    """One Redis, and programs of ours and of theirs around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = RedisServer(reactor, redis_binary())
        self._programs: list[Program] = []
        self._peers: list[RawPeer] = []

    async def stop(self) -> None:
        for peer in self._peers:
            if not peer.is_lost:
                peer.abort()
                await peer.until(lambda peer=peer: peer.is_lost)
        for program in reversed(self._programs):
            if program.child.pid is not None:
                await program.child.stop(timeout_s=20)
        await self.redis.stop()

    async def _run(self, program: Program, ready: str) -> Program:
        self._programs.append(program)
        program.child.start()

        def is_ready() -> bool:
            assert program.child.pid is not None, program.output
            return ready in program.output

        await eventually(reactor, is_ready, timeout_s=30)
        return program

    def _theirs(self, name: str, *arguments: str) -> Program:
        command = (sys.executable, "-m", f"tests.support.original.{name}")
        return Program(reactor, *arguments, folder=ROOT, command=command)

    async def their_callee(self, *arguments: str) -> Program:
        port = str(self.redis.port)
        return await self._run(self._theirs("callee", "--redis", port, *arguments), "serving")

    async def our_callee(self, name: str = "pelotontx.demo.callee:callee") -> Program:
        command = (str(BIN / "peloton"), "callee", name, "--broker", self.redis.url)
        program = Program(reactor, folder=self.folder, command=command)
        return await self._run(program, "Serving")

    async def their_server(self, *arguments: str) -> int:
        """Its port."""
        port = free_port()
        words = ("--redis", str(self.redis.port), "--port", str(port), *arguments)
        await self._run(self._theirs("server", *words), "listening")
        return port

    async def our_server(self) -> int:
        (self.folder / "peloton.toml").write_text(UNLIMITED)
        words = ("--config", "peloton.toml", "--broker", self.redis.url)
        server = PelotonServer(reactor, *words, folder=self.folder)
        self._programs.append(server)
        await server.start()

        async def is_ready() -> bool:
            return (await server.get("/health"))[0] == 200

        await until(reactor, is_ready)
        return server.port

    async def peer(self, port: int, **opening: Any) -> RawPeer:
        peer = await raw_juggler.connect(reactor, port, **opening)
        self._peers.append(peer)
        return peer

    async def load(self, port: int, *arguments: str) -> dict[str, Any]:
        """What their load tester has counted."""
        program = self._theirs("load", "--url", f"ws://127.0.0.1:{port}/ws", *arguments)
        self._programs.append(program)
        program.child.start()
        status = await program.ended(timeout_s=120)
        assert status.code == 0, program.output
        counted: dict[str, Any] = json.loads(program.lines[-1])
        return counted

    async def nothing_is_left(self) -> None:
        """Until Redis holds no call, no result and no timeout."""

        async def is_empty() -> bool:
            return await self.redis.command("KEYS", "juggler:*") == []

        await until(reactor, is_empty)


@pytest_twisted.async_yield_fixture
async def meeting(tmp_path: Path) -> AsyncIterator[Meeting]:
    meeting = Meeting(tmp_path)
    await meeting.redis.start()
    yield meeting
    await meeting.stop()


async def the_functions_answer(peer: RawPeer) -> None:
    """The three functions, as everybody's callee has them."""
    assert (await peer.call("test.echo", "0012")).payload["args"] == "0012"
    assert (await peer.call("test.reverse", "añb✓")).payload["args"] == "✓bña"
    assert (await peer.call("test.delay", "20")).payload["args"] == 20
    for uri in ("test.reverse", "test.delay"):
        error = (await peer.call(uri, {"not": "text"})).payload["args"]
        assert error.keys() == {"error"}
        assert isinstance(error["error"]["message"], str)
    for n in range(300):
        peer.send(CALL, uri="test.echo", args=str(n))
    await peer.until(lambda: len(peer.of(RES)) == 305)
    assert {res.payload["args"] for res in peer.of(RES)[5:]} == {str(n) for n in range(300)}
    assert len(peer.of(ACK)) == 305


async def a_call_in_time_is_run_and_a_late_one_is_not(
    meeting: Meeting, peer: RawPeer, callee: Callable[[], Awaitable[object]]
) -> None:
    """Calls that waited for a callee: the one whose time is over is dropped by it."""
    short = peer.send(CALL, uri="test.echo", args="short", timeout=50_000_000)
    long = peer.send(CALL, uri="test.echo", args="long", timeout=60 * 10**9)
    await peer.until(lambda: len(peer.of(ACK)) == 2)

    async def one_is_over() -> bool:
        return len(await meeting.redis.command("KEYS", "juggler:calls:timeout:*")) == 1

    await until(reactor, one_is_over)
    await callee()
    await peer.answer(long, RES)
    assert [answer.type for answer in peer.answers_to(short)] == [ACK]


class TestTheirCalleeUnderOurServer:
    @pytest_twisted.ensureDeferred
    async def test_it_answers(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.our_server())
        await meeting.their_callee()
        await the_functions_answer(peer)
        await meeting.nothing_is_left()

    @pytest_twisted.ensureDeferred
    async def test_it_drops_what_is_over(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.our_server())
        await a_call_in_time_is_run_and_a_late_one_is_not(meeting, peer, meeting.their_callee)

    @pytest_twisted.ensureDeferred
    async def test_its_result_comes_in_time_or_never(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.our_server())
        await meeting.their_callee()
        late = peer.send(CALL, uri="test.delay", args="300", timeout=100_000_000)
        await peer.call("test.delay", "600")
        assert [answer.type for answer in peer.answers_to(late)] == [ACK]
        await meeting.nothing_is_left()


class TestOurCalleeUnderTheirServer:
    @pytest_twisted.ensureDeferred
    async def test_it_answers(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.their_server())
        await meeting.our_callee()
        await the_functions_answer(peer)
        await meeting.nothing_is_left()

    @pytest_twisted.ensureDeferred
    async def test_it_drops_what_is_over(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.their_server())
        await a_call_in_time_is_run_and_a_late_one_is_not(meeting, peer, meeting.our_callee)

    @pytest_twisted.ensureDeferred
    async def test_a_call_whose_timeout_key_is_gone_is_not_run(self, meeting: Meeting) -> None:
        (meeting.folder / "noting.py").write_text(OUR_CALLEE)
        await meeting.our_callee("noting:callee")
        entry = {"conn_uuid": "c", "msg_uuid": "m", "uri": "test.echo", "args": "no key"}
        await meeting.redis.command("LPUSH", "juggler:calls:{test.echo}", json.dumps(entry))
        peer = await meeting.peer(await meeting.their_server())
        await peer.call("test.echo", "with a key")
        assert (meeting.folder / "ours.log").read_text() == "with a key\n"
        assert await meeting.redis.command("EXISTS", "juggler:results:{c}") == 0

    @pytest_twisted.ensureDeferred
    async def test_their_cap_holds_for_what_waits(self, meeting: Meeting) -> None:
        peer = await meeting.peer(await meeting.their_server("--call-cap", "2"))
        answers = [await peer.request(CALL, uri="test.echo", args=str(n)) for n in range(3)]
        assert [answer.type for answer in answers] == [ACK, ACK, NACK]
        await meeting.our_callee()
        await peer.until(lambda: len(peer.of(RES)) == 2)


class TestSideBySide:
    @pytest_twisted.ensureDeferred
    async def test_both_callees_and_both_servers_share_a_uri(self, meeting: Meeting) -> None:
        (meeting.folder / "noting.py").write_text(OUR_CALLEE)
        theirs = meeting.folder / "theirs.log"
        await meeting.our_callee("noting:callee")
        await meeting.their_callee("--uri", "test.echo", "--executions", str(theirs))
        ours = await meeting.peer(await meeting.our_server())
        other = await meeting.peer(await meeting.their_server())
        for n in range(400):
            ours.send(CALL, uri="test.echo", args=f"ours {n}")
            other.send(CALL, uri="test.echo", args=f"theirs {n}")
        for peer, name in ((ours, "ours"), (other, "theirs")):
            await peer.until(lambda peer=peer: len(peer.of(RES)) == 400)
            results = {res.payload["args"] for res in peer.of(RES)}
            assert results == {f"{name} {n}" for n in range(400)}
        executed = (meeting.folder / "ours.log").read_text().splitlines()
        executed_by_theirs = theirs.read_text().splitlines()
        assert len(executed) + len(executed_by_theirs) == 800
        assert len(set(executed)) == len(executed)
        assert len(set(executed_by_theirs)) == len(executed_by_theirs)
        await meeting.nothing_is_left()

    @pytest_twisted.ensureDeferred
    async def test_events_pass_between_both_servers(self, meeting: Meeting) -> None:
        ours = await meeting.peer(await meeting.our_server())
        theirs = await meeting.peer(await meeting.their_server())
        for peer in (ours, theirs):
            peer.send(SUB, channel="news.sport", pattern=False)
            peer.send(SUB, channel="news.*", pattern=True)

        async def are_subscribed() -> bool:  # their ACK says only that Redis was asked
            counts = await meeting.redis.command("PUBSUB", "NUMSUB", "news.sport")
            patterns = await meeting.redis.command("PUBSUB", "NUMPAT")
            return counts[1] == 2 and patterns >= 1 and len(theirs.of(ACK)) == 2

        await until(reactor, are_subscribed)
        await ours.until(lambda: len(ours.of(ACK)) == 2)
        expected = []
        for n, peer in enumerate((ours, theirs) * 10):
            id_ = peer.send(PUB, channel="news.sport", args=f"00{n}")
            expected += [(id_, f"00{n}")] * 2
            for receiver in (ours, theirs):
                await receiver.until(lambda r=receiver, c=2 * n + 2: len(r.of(EVNT)) == c)
        for receiver in (ours, theirs):
            told = [(event.for_uuid, event.payload["args"]) for event in receiver.of(EVNT)]
            assert told == expected
            assert [event.payload.get("pattern") for event in receiver.of(EVNT)].count(None) == 20


class TestTheirClientsOnOurServer:
    @pytest_twisted.ensureDeferred
    async def test_their_load_loses_nothing(self, meeting: Meeting) -> None:
        port = await meeting.our_server()
        await meeting.our_callee()
        words = ("-c", "20", "-n", "25", "-r", "5", "-t", "30000", "-p", "5")
        counted = await meeting.load(port, *words)
        assert (counted["calls"], counted["acks"], counted["results"]) == (500, 500, 500)
        assert (counted["nacks"], counted["expired"]) == (0, 0)
        assert counted["answers"] == ["5"]
        await meeting.nothing_is_left()

    @pytest_twisted.ensureDeferred
    async def test_their_load_on_their_callee_loses_nothing(self, meeting: Meeting) -> None:
        port = await meeting.our_server()
        await meeting.their_callee()
        words = ("-c", "10", "-n", "30", "-r", "2", "-t", "30000", "-p", "a✓", "-u", "test.reverse")
        counted = await meeting.load(port, *words)
        assert (counted["calls"], counted["acks"], counted["results"]) == (300, 300, 300)
        assert counted["answers"] == [json.dumps("✓a")]

    @pytest_twisted.ensureDeferred
    async def test_their_load_counts_what_nobody_serves_as_expired(self, meeting: Meeting) -> None:
        port = await meeting.our_server()
        counted = await meeting.load(port, "-c", "5", "-n", "4", "-r", "1", "-t", "300")
        assert (counted["acks"], counted["results"], counted["expired"]) == (20, 0, 20)

    @pytest_twisted.ensureDeferred
    async def test_their_integration_scenario_passes_on_both(self, meeting: Meeting) -> None:
        await meeting.our_callee()
        for port in (await meeting.our_server(), await meeting.their_server()):
            caller = await meeting.peer(port, headers=[("Juggler-Allowed-Messages", "call, pub")])
            listener = await meeting.peer(port, headers=[("Juggler-Allowed-Messages", "sub, unsb")])
            assert (await listener.request(SUB, channel="c", pattern=False)).type == ACK
            assert (await caller.call("test.delay", "10")).payload["args"] == 10
            id_ = caller.send(PUB, channel="c", args={"a": 1})
            event = await listener.answer(id_, EVNT)
            assert event.payload["args"] == {"a": 1}
            assert (await listener.request(UNSB, channel="c", pattern=False)).type == ACK
            assert (await caller.answer(id_, ACK)).payload["channel"] == "c"
            for peer, type_, about in (
                (caller, SUB, {"channel": "c", "pattern": False}),
                (listener, CALL, {"uri": "test.echo", "args": "x"}),
            ):
                nack = await peer.request(type_, **about)
                assert (nack.type, nack.payload["code"]) == (NACK, 403)

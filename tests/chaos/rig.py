"""A server, callees and callers on a broker that is about to have a bad day.

    await run(reactor, RedisGround(reactor), folder, seed=1, rounds=8)

All random choices come from the seed. A round is one fault and the wait until all is well again,
without anybody's help: `/health` must have told the fault where it can know of it, and calls must
pass. Callers go on all the time.
"""

from __future__ import annotations

import random
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.web.client import ResponseNeverReceived

from tests.chaos.functions import FUNCTIONS, URIS
from tests.chaos.grounds import Ground
from tests.support import raw_juggler
from tests.support.ledger import Ledger, State
from tests.support.programs import BIN, PelotonServer, Program
from tests.support.raw_juggler import (
    ACK,
    CALL,
    EVNT,
    NACK,
    PUB,
    RES,
    SUB,
    Message,
    RawPeer,
    RefusedError,
)
from tests.support.redis_node import until
from tests.support.servers import eventually

CALLERS = 8
CALLEES = 2
BATCH = 5
# Of a callee: fewer than there are calls, so that some always wait in the broker.
CONCURRENCY = 4
TIMEOUT_S = 2.0
# A server that is this late with a result is told from a machine that is busy.
GRACE_S = 5.0
CHANNEL = "chaos"

CONFIG = """
[broker]
connect_timeout = "1s"
reply_timeout = "1s"
[rpc]
message_rate = 0
calls_limit = 1000
"""
_ENVIRON = {"PELOTON_BROKER__CONNECT_TIMEOUT": "1s", "PELOTON_BROKER__REPLY_TIMEOUT": "1s"}


class Caller:
    """One connection after the other, each with a few calls at a time, all in the ledger."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)
        self._peer: RawPeer | None = None

    async def call_for_ever(self) -> None:
        """Until the rig stops its callers."""
        while not self._rig.is_stopping:
            await self.batch()
            await self._rig.pause(0.03)

    async def batch(self) -> bool:
        """Some calls at once, to their ends; whether all were answered."""
        ledger, peer = self._rig.ledger, await self._connected()
        if peer is None:
            return False
        ids = [str(uuid.uuid4()) for _ in range(BATCH)]
        peer.on_lost = lambda: [ledger.lost(id_) for id_ in ids]
        for id_ in ids:
            ledger.sent(id_)
            uri = self._random.choice(URIS)
            peer.send(CALL, uuid_=id_, uri=uri, args=id_, timeout=int(TIMEOUT_S * 1e9))
        if peer.is_lost:
            peer.on_lost()
        deadline_s = self._rig.reactor.seconds() + TIMEOUT_S + GRACE_S
        while any(map(ledger.is_open, ids)) and self._rig.reactor.seconds() < deadline_s:
            await self._rig.pause(0.01)
        for id_ in filter(ledger.is_open, ids):
            ledger.time_is_over(id_)
        peer.messages.clear()
        return all(ledger.states[id_] is State.ANSWERED for id_ in ids)

    async def hang_up(self) -> None:
        """Once the server has no more to say."""
        if self._peer is not None:
            await _hang_up(self._peer)

    async def _connected(self) -> RawPeer | None:
        if self._peer is None or self._peer.is_lost:
            self._peer = await self._rig.connect()
            if self._peer is not None:
                self._peer.on_message = self._heard
        return self._peer

    def _heard(self, message: Message) -> None:
        ledger, id_ = self._rig.ledger, message.for_uuid
        if message.type == ACK:
            ledger.acked(id_)
        elif message.type == NACK:
            ledger.refused(id_, message.payload["message"])
        else:
            assert message.type == RES
            ledger.answered(id_, message.payload["args"])


class Listener:
    """Publishes, and hears itself, on one connection as long as that lasts.

    Attributes:
        heard: what has come, of the numbers 1, 2, 3…
    """

    def __init__(self, rig: Rig) -> None:
        self.heard: list[int] = []
        self._rig = rig
        self._peer: RawPeer | None = None
        self._is_asked_for = False
        self._published = 0

    async def hears(self) -> bool:
        """Whether an event that is published now comes soon."""
        if self._peer is None or self._peer.is_lost:
            self._peer = await self._rig.connect()
            if self._peer is None:
                return False
            self._peer.on_message = self._note
            self._is_asked_for = False
        if not self._is_asked_for:
            self._is_asked_for = True
            self._peer.send(SUB, channel=CHANNEL, pattern=False)
        self._published = number = self._published + 1
        self._peer.send(PUB, channel=CHANNEL, args=number)
        deadline_s = self._rig.reactor.seconds() + 2.0
        while number not in self.heard and self._rig.reactor.seconds() < deadline_s:
            await self._rig.pause(0.01)
        return number in self.heard

    async def hang_up(self) -> None:
        """Listens no more."""
        if self._peer is not None:
            await _hang_up(self._peer)

    def _note(self, message: Message) -> None:
        if message.type == EVNT:
            self.heard.append(message.payload["args"])
        elif message.type == NACK and message.payload["for_type"] == SUB:
            self._is_asked_for = False


async def _hang_up(peer: RawPeer) -> None:
    if not peer.is_lost:
        await peer.echoed()
        peer.on_lost = lambda: None
        peer.abort()
        await peer.until(lambda: peer.is_lost)


class Rig:
    """Everything of one run.

    Attributes:
        random: the seed's; what a fault needs of chance comes from here.
        ledger: of all calls.
        is_stopping: the callers are to end.
    """

    def __init__(self, reactor: Any, ground: Ground, folder: Path, seed: int) -> None:
        self.reactor = reactor
        self.random = random.Random(seed)
        self.ledger = Ledger()
        self.is_stopping = False
        self._ground = ground
        self._folder = folder
        self._callees: list[Program] = []
        self._programs: list[Program] = []
        self._probe = Caller(self, seed)
        self._listener = Listener(self)
        self.server = self._new_server(None)

    def pause(self, seconds: float) -> Deferred[None]:
        """Lets the world go on for a moment."""
        return deferLater(self.reactor, seconds)

    async def connect(self) -> RawPeer | None:
        """A new connection to the server; None when it takes none at this moment."""
        try:
            return await raw_juggler.connect(self.reactor, self.server.port)
        except (ConnectError, RefusedError):
            return None

    async def start(self) -> None:
        """Everything runs and calls pass."""
        (self._folder / "peloton.toml").write_text(CONFIG)
        (self._folder / "chaos_functions.py").write_text(FUNCTIONS)
        await self.server.start()
        for _ in range(CALLEES):
            self._callees.append(await self._new_callee())
        await self.healed()

    async def stop(self) -> None:
        """Everything has ended, in order."""
        await self._probe.hang_up()
        await self._listener.hang_up()
        await gatherResults(
            [callee.child.stop(timeout_s=20) for callee in self._callees], consumeErrors=True
        )
        if self.server.child.pid is not None:
            await self.server.stop()

    # What faults do

    async def kill_callee(self) -> None:
        """kill -9 of one, which is started again."""
        place = self.random.randrange(CALLEES)
        await self._callees[place].child.stop(timeout_s=0)
        self._callees[place] = await self._new_callee()

    async def end_callee(self) -> None:
        """SIGTERM of one: it finishes what it has."""
        place = self.random.randrange(CALLEES)
        await self._callees[place].child.stop(timeout_s=20)
        self._callees[place] = await self._new_callee()

    async def freeze_callee(self) -> None:
        """SIGSTOP of one for a while, past the time of the calls that it holds."""
        callee = self.random.choice(self._callees)
        callee.child.signal(signal.SIGSTOP)
        await self.pause(TIMEOUT_S * self.random.uniform(0.2, 1.3))
        callee.child.signal(signal.SIGCONT)

    async def kill_server(self) -> None:
        """kill -9, and a new one on the same port."""
        port = self.server.port
        await self.server.child.stop(timeout_s=0)
        self.server = self._new_server(port)
        await self.server.start()

    faults = (kill_callee, end_callee, freeze_callee, kill_server)

    async def until_ill(self) -> None:
        """Until `/health` tells of the fault."""
        await until(self.reactor, self._is_ill)

    # Truth

    async def healed(self) -> None:
        """Until `/health` says so, calls are answered, and events come."""
        await until(self.reactor, self._is_well, timeout_s=60)

        async def passes() -> bool:
            return await self._probe.batch()

        await until(self.reactor, passes, timeout_s=90)
        await until(self.reactor, self._listener.hears, timeout_s=60)
        assert all(callee.child.pid is not None for callee in self._callees), "a callee has ended"

    async def _is_well(self) -> bool:
        return await self._health() == 200

    async def _is_ill(self) -> bool:
        return await self._health() == 503

    async def _health(self) -> int:
        try:
            return (await self.server.get("/health"))[0]
        except (ConnectError, ResponseNeverReceived):
            return 0

    def check(self) -> None:
        """The ledger's invariants; events in order; and no failure that nobody awaited."""
        executions = (self._folder / "executions.log").read_text().splitlines()
        ids = Counter(line.partition(" ")[0] for line in executions)
        self.ledger.executed(ids.elements())
        print(self.ledger)
        for line in executions:  # for whoever looks for the reason
            if ids[line.partition(" ")[0]] > 1:
                print(f"run again: {line}")
        self.ledger.check()
        heard = self._listener.heard
        assert heard == sorted(set(heard)), "events came twice, or out of order"
        for program in self._programs:
            assert "Traceback" not in program.output, program.output[-5000:]

    # Programs

    def _new_server(self, port: int | None) -> PelotonServer:
        words = ("--config", "peloton.toml", "--broker", self._ground.server_url)
        server = PelotonServer(self.reactor, *words, port=port, folder=self._folder)
        self._programs.append(server)
        return server

    async def _new_callee(self) -> Program:
        name = "chaos_functions:callee"
        words = (str(BIN / "peloton"), "callee", name, "--broker", self._ground.callee_url)
        words += ("--concurrency", str(CONCURRENCY))
        callee = Program(self.reactor, folder=self._folder, command=words, environ=_ENVIRON)
        self._programs.append(callee)
        callee.child.start()
        await eventually(self.reactor, lambda: "Serving" in callee.output, timeout_s=30)
        return callee


async def run(
    reactor: Any,
    ground: Ground,
    folder: Path,
    *,
    seed: int,
    rounds: int | None = None,
    kill_programs: bool = True,
) -> None:
    """One run; fails on a broken invariant, and prints what it did.

    Args:
        reactor: the tests' reactor.
        ground: the broker and its own faults.
        folder: for the programs.
        seed: of all random choices.
        rounds: how many faults; None: the ground's short ones, each once.
        kill_programs: whether the server and callees have faults too.
    """
    await ground.start()
    rig = Rig(reactor, ground, folder, seed)
    callers = [Caller(rig, seed + 1 + n) for n in range(CALLERS)]
    calling: list[Deferred[None]] = []
    try:
        await rig.start()
        calling = [Deferred.fromCoroutine(caller.call_for_ever()) for caller in callers]
        program_faults = Rig.faults if kill_programs else ()
        if rounds is None:
            chosen = [*ground.short_faults, *program_faults]
            rig.random.shuffle(chosen)
        else:
            chosen = rig.random.choices([*ground.faults, *program_faults], k=rounds)
        for fault in chosen:
            await rig.pause(rig.random.uniform(0.1, 0.6))
            began_s = reactor.seconds()
            await fault(rig)
            await rig.healed()
            took_s = reactor.seconds() - began_s
            print(f"{fault.__name__} at {began_s:.3f}: well after {took_s:.1f} s")
    finally:
        rig.is_stopping = True
        await gatherResults(calling, consumeErrors=True)
        for caller in callers:
            await caller.hang_up()
        await rig.stop()
        await ground.stop()
    rig.check()

"""One broker of each kind, with as many servers and callees on it as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.broker.hub import Event, Hub, PendingCall
from pelotontx.broker.interface import Broker, IncomingCall
from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.redis import RedisBroker
from pelotontx.errors import BrokerError
from pelotontx.net.wheel import Wheel
from tests.support.redis_fronts import ClusterServer, TrioServer
from tests.support.servers import RedisServer, eventually, redis_binary, valkey_binary


def store_result(source: BrokerCallee, call: IncomingCall, args: bytes) -> Deferred[Any]:
    """Fires with what the broker says: None, or why it is not stored."""
    result: Deferred[Any] = Deferred()
    source.store_result(call, args, result.callback)
    return result


class Peer:
    """Makes calls and listens, and remembers what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.listeners: list[Callable[[], None]] = []

    def _tell(self, *what: Any) -> None:
        self.told.append(what)

    def call_stored(self, call: PendingCall) -> None:
        self._tell("stored", call.request)

    def call_refused(self, call: PendingCall, error: BrokerError) -> None:
        self._tell("refused", call.request, error)

    def call_answered(self, call: PendingCall, args: bytes) -> None:
        self._tell("answered", call.request, args)

    def call_expired(self, call: PendingCall) -> None:
        self._tell("expired", call.request)

    def event(self, event: Event) -> None:
        self._tell("event", event.channel, event.pattern, event.args)

    def of(self, kind: str) -> list[Any]:
        """What was told of one kind, in order."""
        return [what[1:] if len(what) > 2 else what[1] for what in self.told if what[0] == kind]


class Node:
    """One server process's worth: a broker and the hub on it."""

    def __init__(self, reactor: Any, broker: Broker, hub: Hub, wheel: Wheel) -> None:
        self.broker = broker
        self.hub = hub
        self._reactor = reactor
        self._wheel = wheel

    def call(
        self, peer: Peer, request: Any, uri: str, args: bytes = b"", timeout_s: float = 5.0
    ) -> PendingCall:
        return self.hub.call(peer, request, uri=uri, args=args, timeout_s=timeout_s)

    async def stop(self) -> None:
        await self.hub.stop()
        await self.broker.stop()
        self._wheel.stop()


class World:
    """A broker of one kind and everything that a test puts on it."""

    def __init__(self, reactor: Any, kind: str) -> None:
        self.reactor = reactor
        self.kind = kind
        self.server: RedisServer | TrioServer | ClusterServer | None = None
        self._memory: MemoryBroker | None = None
        self._stops: list[Callable[[], Any]] = []

    async def start(self) -> None:
        if self.kind == "memory":
            self._memory = MemoryBroker(self.reactor, call_cap=lambda uri: 20)
            return
        if self.kind == "sentinel":
            self.server = await TrioServer.open(self.reactor)
        elif self.kind == "cluster":
            self.server = await ClusterServer.open(self.reactor)
        else:
            binary = valkey_binary() if self.kind == "valkey" else redis_binary()
            self.server = RedisServer(self.reactor, binary)
            await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            self.server.thaw()
        for stop in reversed(self._stops):
            await stop()
        if self.server is not None:
            await self.server.stop()

    @property
    def url(self) -> str:
        """Valkey over its socket, Redis over TCP: so both ways are used."""
        assert self.server is not None
        if self.kind == "valkey":
            assert isinstance(self.server, RedisServer)
            return self.server.socket_url
        return self.server.url

    def _open(self, **options: Any) -> Broker:
        return RedisBroker(
            self.reactor,
            self.url,
            reply_timeout_s=1.0,
            call_cap=lambda uri: 20,
            result_cap=50,
            **options,
        )

    async def node(self) -> Node:
        """A further server on the broker."""
        wheel = Wheel(self.reactor, tick_s=0.02)
        if self._memory is not None:
            caller, pubsub = self._memory.another_caller(), self._memory.another_pubsub()
            node = Node(
                self.reactor, self._memory, Hub(caller=caller, pubsub=pubsub, wheel=wheel), wheel
            )
        else:
            broker = self._open()
            hub = Hub(caller=broker.caller, pubsub=broker.pubsub, wheel=wheel)
            node = Node(self.reactor, broker, hub, wheel)
        node.broker.start()
        node.hub.start()
        self._stops.append(node.stop)
        await self.healed(node)
        return node

    async def healed(self, node: Node) -> None:
        """Until calls, results and events of the node pass."""
        peer = Peer()

        def subscribe() -> None:
            done: Deferred[Any] = node.hub.subscribe(peer, "heartbeat", pattern=False)
            done.addBoth(lambda outcome: peer.told.append(("subscribed", outcome)))

        subscribe()

        def is_subscribed() -> bool:
            if peer.told and peer.told[-1][1] is not None:
                peer.told.clear()
                subscribe()
            return bool(peer.told) and peer.told[-1][1] is None

        await eventually(self.reactor, is_subscribed, timeout_s=30)
        node.hub.unsubscribe(peer, "heartbeat", pattern=False)
        await eventually(self.reactor, lambda: node.broker.available, timeout_s=30)

    async def source(self) -> BrokerCallee:
        """A bare callee side, for tests that take calls by hand."""
        if self._memory is not None:
            source = self._memory.callee()
            self._stops.append(source.stop)
            return source
        broker = self._open()
        broker.start()
        self._stops.append(broker.stop)
        source = broker.callee()
        source.start()
        self._stops.append(source.stop)
        await eventually(self.reactor, lambda: broker.available)
        return source

    async def callee(self, callee: Callee, **options: Any) -> CalleeService:
        """Runs a callee as a process of its own would."""
        if self._memory is not None:
            new_source: Callable[[], BrokerCallee] = self._memory.callee
        else:
            broker = self._open()
            broker.start()
            self._stops.append(broker.stop)
            new_source = broker.callee
        service = CalleeService(callee, new_source, clock=self.reactor, **options)
        service.startService()
        self._stops.append(service.stopService)
        return service

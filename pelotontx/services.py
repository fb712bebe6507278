"""From a configuration to services: what a server is made of, how it starts and how it stops.

Start: broker, backend, gateway, listeners. Stop: the listeners close, clients are told and what is
in flight ends (bounded), then the backend stops, then the broker.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    gatherResults,
    maybeDeferred,
)
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

import pelotontx
from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.backend.supervisor import Supervisor
from pelotontx.broker.hub import Hub
from pelotontx.broker.interface import Broker
from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.redis import RedisBroker
from pelotontx.config import (
    BrokerConfig,
    CalleeConfig,
    Config,
    HttpConfig,
    RpcConfig,
    WebSocketConfig,
    as_environment,
    load_object,
    without_password,
)
from pelotontx.demo import page
from pelotontx.errors import ConfigError
from pelotontx.flow import Tasks, later
from pelotontx.gateway import juggler
from pelotontx.net.embedded import EmbeddedValkey
from pelotontx.net.http import HTTPFactory, HTTPLimits
from pelotontx.net.tcp import listen
from pelotontx.net.websocket import ServerFactory, WebSocketLimits
from pelotontx.net.wheel import Wheel
from pelotontx.ops import health, metrics
from pelotontx.web.app import App
from pelotontx.web.app import Request as WebRequest
from pelotontx.wire.http import HeadLimits
from pelotontx.wire.juggler import NAMES

_log = Logger(namespace="pelotontx")

_BROKER_WAIT_S = 1.0


class Phase(Service):
    """One step of starting and stopping: a name and what to do."""

    def __init__(
        self,
        name: str,
        *,
        start: Callable[[], Any] = lambda: None,
        stop: Callable[[], Any] = lambda: None,
    ) -> None:
        self.name = name
        self.start = start
        self.stop = stop


class Server(MultiService):
    """The root: its phases start in order and stop in reverse, each awaited.

    A phase that cannot start stops the server: `on_failure` is told why.

    Args:
        on_failure: called with the exception when the start has failed.
        on_stopping: called when a stop begins.

    Attributes:
        ports: what is listened on, once started.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        on_failure: Callable[[BaseException], None],
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ports: list[IListeningPort] = []
        self._on_failure = on_failure
        self._on_stopping = on_stopping
        self._phases: list[Phase] = []
        self._started: list[Phase] = []
        self._starting = Tasks()
        self.started: Deferred[None] = Deferred()

    def add(self, phase: Phase) -> None:
        """Appends a phase."""
        self._phases.append(phase)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._starting.spawn(self._start())

    async def _start(self) -> None:
        for phase in self._phases:
            self._started.append(phase)
            try:
                await maybeDeferred(phase.start)
            except CancelledError:  # stopped meanwhile
                raise
            except Exception as error:  # whatever it is, a server that is half up is no server
                self._on_failure(error)
                return
        if not self.started.called:
            self.started.callback(None)

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._on_stopping()
        await self._starting.stop()
        while self._started:
            phase = self._started.pop()
            try:
                await maybeDeferred(phase.stop)
            except Exception:  # the others must stop all the same
                self._log.failure("{name} did not stop cleanly", name=phase.name)


def build(config: Config, *, reactor: Any, **hooks: Any) -> Server:
    """Everything that `config` names, not started.

    Args:
        config: checked.
        reactor: everything lives on it.
        hooks: `Server`'s; without `on_failure` a failed start is logged and ends the reactor.

    Raises:
        ConfigError: an object that a dotted name stands for is missing or of another kind.
    """
    hooks.setdefault("on_failure", partial(_end, reactor))
    return _Builder(config, reactor).build(Server(**hooks))


def _end(reactor: Any, error: BaseException) -> None:
    _log.critical("The server cannot start: {error}", error=error)
    reactor.stop()


def open_broker(reactor: Any, url: str, config: BrokerConfig) -> Broker:
    """The broker behind a ``redis://``, ``unix://`` or ``memory:`` URL, not started."""
    if url == "memory:":
        return MemoryBroker(reactor, call_cap=config.call_cap)
    return RedisBroker(
        reactor,
        url,
        connect_timeout_s=config.connect_timeout_s,
        reply_timeout_s=config.reply_timeout_s,
        call_cap=config.call_cap,
        result_cap=config.result_cap,
    )


def callee_service(
    callee: Callee, config: Config, *, concurrency: int = 64, reactor: Any
) -> IService:
    """A callee with a broker connection of its own, for a process of its own.

    Args:
        callee: the functions.
        config: whose ``broker.url`` is ``redis://`` or ``unix://``.
        concurrency: how many functions run at once.
        reactor: everything lives on it.
    """
    broker = open_broker(reactor, config.broker.url, config.broker)
    runner = CalleeService(
        callee,
        broker.callee(),
        clock=reactor,
        concurrency=concurrency,
        result_limit_bytes=config.rpc.result_limit_bytes,
        stop_timeout_s=config.server.drain_timeout_s,
    )
    server = Server(on_failure=partial(_end, reactor))
    server.add(Phase("broker", start=broker.start, stop=broker.stop))
    server.add(Phase("callee", start=runner.startService, stop=runner.stopService))
    return server


def http_limits(config: HttpConfig) -> HTTPLimits:
    """The section ``[http]`` as `net.http` wants it."""
    return HTTPLimits(
        head=HeadLimits(
            line_bytes=config.request_line_limit_bytes,
            field_bytes=config.field_limit_bytes,
            head_bytes=config.head_limit_bytes,
            fields=config.fields_limit,
        ),
        head_s=config.head_timeout_s,
        body_limit_bytes=config.body_limit_bytes,
        body_idle_s=config.body_idle_timeout_s,
        body_rate_bytes_s=config.body_rate_bytes,
        body_rate_after_s=config.body_rate_grace_s,
        keep_alive_s=config.idle_timeout_s,
        requests=config.requests_limit,
        pipelined_bytes=config.pipeline_limit_bytes,
        unread_s=config.write_idle_timeout_s,
        unread_bytes=config.write_buffer_limit_bytes,
    )


def websocket_limits(config: WebSocketConfig) -> WebSocketLimits:
    """The section ``[websocket]`` as `net.websocket` wants it."""
    return WebSocketLimits(
        message_limit_bytes=config.message_limit_bytes,
        fragments_limit=config.fragments_limit,
        outbound_limit_bytes=config.outbound_limit_bytes,
        open_timeout_s=config.open_timeout_s,
        close_timeout_s=config.close_timeout_s,
        ping_interval_s=config.ping_interval_s,
        pong_timeout_s=config.pong_timeout_s,
    )


def juggler_limits(config: RpcConfig, websocket: WebSocketConfig) -> juggler.JugglerLimits:
    """The section ``[rpc]`` as `gateway.juggler` wants it."""
    return juggler.JugglerLimits(
        call_timeout_s=config.call_timeout_s,
        call_timeout_limit_s=config.call_timeout_limit_s,
        calls_limit=config.calls_limit,
        subscriptions_limit=config.subscriptions_limit,
        channel_limit_bytes=config.channel_limit_bytes,
        patterns=config.patterns,
        message_rate=config.message_rate,
        message_burst=config.message_burst,
        result_limit_bytes=config.result_limit_bytes,
        close_uri=config.close_uri,
        slow_message_s=websocket.slow_message_threshold_s,
    )


class _Builder:
    """Wires one server; an attribute a part."""

    def __init__(self, config: Config, reactor: Any) -> None:
        self.config = config
        self.reactor = reactor
        self.wheel = Wheel(reactor)
        self.valkey: EmbeddedValkey | None = None
        url = config.broker.url
        if url == "embedded:":
            self.valkey = EmbeddedValkey(reactor)
            url = self.valkey.url
        self.broker_url = url
        self.broker = open_broker(reactor, url, config.broker)
        self.hub = Hub(
            caller=self.broker.caller,
            pubsub=self.broker.pubsub,
            wheel=self.wheel,
            pending_limit=config.broker.result_cap,
        )
        self.endpoint = juggler.JugglerEndpoint(
            hub=self.hub,
            clock=reactor,
            limits=juggler_limits(config.rpc, config.websocket),
            allow_empty_subprotocol=config.websocket.allow_empty_subprotocol,
        )
        self.websockets = ServerFactory(
            reactor,
            wheel=self.wheel,
            accept=self.endpoint.accept,
            limits=websocket_limits(config.websocket),
            origins=config.websocket.origins,
        )
        self.health = health.Health(reactor, version=pelotontx.__version__)
        self.metrics = metrics.Metrics()
        self.app = self._app()
        self.http = HTTPFactory(
            self.app.handle,
            wheel=self.wheel,
            clock=reactor,
            limits=http_limits(config.http),
            request_class=WebRequest,
            admits=self._has_room,
        )
        self.backend = [self._callee(n, callee) for n, callee in enumerate(config.callee)]
        self._watch()

    def build(self, server: Server) -> Server:
        server.add(Phase("broker", start=self._start_broker, stop=self._stop_broker))
        server.add(
            Phase(
                "backend",
                start=lambda: [service.startService() for service in self.backend],
                stop=lambda: gatherResults(
                    [maybeDeferred(service.stopService) for service in self.backend]
                ),
            )
        )
        server.add(Phase("hub", start=self._start_hub, stop=self._stop_hub))
        server.add(Phase("clients", stop=self._tell_clients))
        server.add(
            Phase(
                "listeners",
                start=lambda: Deferred.fromCoroutine(self._listen(server.ports)),
                stop=lambda: self._unlisten(server.ports),
            )
        )
        return server

    # Phases

    async def _start_valkey(self, valkey: EmbeddedValkey) -> None:
        valkey.startService()
        await valkey.ready

    def _start_broker(self) -> Deferred[None]:
        async def start() -> None:
            if self.valkey is not None:
                await self._start_valkey(self.valkey)
            self.broker.start()

        return Deferred.fromCoroutine(start())

    def _stop_broker(self) -> Deferred[None]:
        async def stop() -> None:
            await self.broker.stop()
            if self.valkey is not None:
                await self.valkey.stopService()
            self.wheel.stop()

        return Deferred.fromCoroutine(stop())

    @property
    def is_available(self) -> bool:
        """Whether calls, results and events pass."""
        return self.broker.available and self.hub.available

    def _start_hub(self) -> Deferred[None]:
        async def start() -> None:
            self.hub.start()
            # A broker that is there is connected within milliseconds: the first client need not be
            # refused. One that is down must not hold the server up.
            deadline_s = self.reactor.seconds() + _BROKER_WAIT_S
            while not self.is_available and self.reactor.seconds() < deadline_s:
                await later(self.reactor, 0.01)

        return Deferred.fromCoroutine(start())

    def _stop_hub(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.hub.stop())

    def _tell_clients(self) -> Deferred[Any]:
        timeout_s = self.config.server.drain_timeout_s
        return gatherResults(
            [
                Deferred.fromCoroutine(self.endpoint.drain(timeout_s)),
                self.http.drain(timeout_s),
            ]
        )

    async def _listen(self, ports: list[IListeningPort]) -> None:
        for description in self.config.server.listen:
            port = await listen(self.reactor, description, self.http)
            ports.append(port)
            _log.info("Listening on {address}", address=_shown(port))

    def _unlisten(self, ports: list[IListeningPort]) -> Deferred[Any]:
        self.health.is_stopping = True
        closing = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        return DeferredList(closing, consumeErrors=True)

    def _has_room(self) -> bool:
        connections = len(self.http.connections) + len(self.websockets.connections)
        return connections < self.config.server.connections_limit

    # Parts

    def _app(self) -> App:
        paths = self.config.paths
        app = App(development=self.config.server.development)
        if paths.websocket:
            app.include(juggler.routes(paths.websocket, self.websockets))
        if paths.client:
            app.include(juggler.client_routes(paths.client))
        if paths.health:
            app.include(health.routes(paths.health, self.health))
        if paths.metrics:
            app.include(metrics.routes(paths.metrics, self.metrics))
        if self.config.web.app:
            app.include(_object(self.config.web.app, "web.app", App))
        elif paths.demo:
            app.include(
                page.routes(paths.demo, websocket_path=paths.websocket, client_path=paths.client)
            )
        return app

    def _callee(self, index: int, config: CalleeConfig) -> IService:
        name = f"callee[{index}]"
        if config.processes:
            return self._callee_processes(name, config)
        service = CalleeService(
            _object(config.object, f"{name}.object", Callee),
            self.broker.callee(),
            clock=self.reactor,
            concurrency=config.concurrency,
            result_limit_bytes=self.config.rpc.result_limit_bytes,
            stop_timeout_s=self.config.server.drain_timeout_s,
        )
        self.health.add(name, lambda: (service.is_taking, {"object": config.object}))
        return service

    def _callee_processes(self, name: str, config: CalleeConfig) -> Supervisor:
        supervisor = Supervisor(
            self.reactor,
            command=[
                *(sys.executable, "-m", "pelotontx", "callee", config.object),
                *("--concurrency", str(config.concurrency)),
            ],
            count=config.processes,
            name=config.object,
            # In the environment, where no other user can read a password.
            environ={
                **os.environ,
                **as_environment(self.config),
                "PELOTON_BROKER__URL": self.broker_url,
                "PELOTON_LOG__FORMAT": "text",  # the supervisor reads the level off it
            },
            stop_timeout_s=self.config.server.drain_timeout_s,
        )
        self.health.add(
            name,
            lambda: (
                not supervisor.has_failed,
                {"object": config.object, "processes": supervisor.state()},
            ),
        )
        return supervisor

    def _watch(self) -> None:
        """Health and metrics read the parts when somebody asks."""
        endpoint, hub, http, websockets = self.endpoint, self.hub, self.http, self.websockets
        shown_url = without_password(self.config.broker.url)
        node = self.config.server.node or socket.gethostname()
        self.health.add("node", lambda: (True, node))
        self.health.add(
            "broker",
            lambda: (self.is_available, {"url": shown_url, "available": self.is_available}),
        )
        add = self.metrics
        add.gauge("broker_available", "1 when the broker answers.", lambda: self.is_available)
        add.gauge("http_connections", "Connections that speak HTTP.", lambda: len(http.connections))
        add.gauge("websocket_connections", "Open WebSockets.", lambda: len(websockets.connections))
        add.counter("connections_refused", "No room for them.", lambda: http.turned_away)
        add.gauge("juggler_sessions", "Open juggler sessions.", lambda: len(endpoint.sessions))
        add.gauge("calls_pending", "Calls that wait for a result.", lambda: hub.pending_calls)
        add.gauge("topics", "Channels and globs subscribed to.", lambda: hub.topics)
        add.counter("juggler_sessions", "juggler sessions so far.", lambda: endpoint.sessions_total)
        add.counter("calls_expired", "Calls without a result.", lambda: endpoint.calls_expired)
        add.counter("slow_messages", "Took long to handle.", lambda: endpoint.slow_messages)
        add.counter("limits_exceeded", "Requests past a limit.", lambda: endpoint.limits_exceeded)
        add.counter("slow_consumers", "Closed for not reading.", lambda: websockets.slow_consumers)
        for name, counts in (
            ("messages_read", endpoint.messages_read),
            ("messages_written", endpoint.messages_written),
        ):
            add.counters(name, "juggler messages by type.", "type", _by_name(counts))


def _by_name(counts: Any) -> Callable[[], dict[str, float]]:
    return lambda: {NAMES[type_]: count for type_, count in counts.items()}


def _object(dotted: str, key: str, kind: type[Any]) -> Any:
    found = load_object(dotted, key)
    if not isinstance(found, kind):
        raise ConfigError(
            key, f"{dotted!r} is a {type(found).__name__}; a pelotontx {kind.__name__} is needed"
        )
    return found


def _shown(port: IListeningPort) -> str:
    host: Any = port.getHost()
    if hasattr(host, "port"):
        name = f"[{host.host}]" if ":" in host.host else host.host
        return f"http://{name}:{host.port}/"
    return f"unix:{getattr(host, 'name', host)}"


__all__: Sequence[str] = ("Phase", "Server", "build", "callee_service", "open_broker")

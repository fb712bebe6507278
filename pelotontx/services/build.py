"""What a server is made of, how it starts and how it stops.

Start: broker, backend, gateway, listeners. Stop: the listeners close, clients are told and what is
in flight ends (bounded), then the backend stops, then the broker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

import pelotontx
from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.backend.supervisor import Supervisor
from pelotontx.broker.hub import Hub
from pelotontx.broker.interface import Broker
from pelotontx.config import CalleeConfig, Config, as_environment, load_kind
from pelotontx.errors import ConfigError
from pelotontx.flow import later
from pelotontx.gateway import juggler
from pelotontx.net.embedded import EmbeddedValkey
from pelotontx.net.http import Handle, HTTPFactory
from pelotontx.net.systemd import Notifier
from pelotontx.net.websocket import ServerFactory
from pelotontx.net.wheel import Wheel
from pelotontx.ops import debug_vars, health, metrics
from pelotontx.ops.access_log import AccessLog
from pelotontx.ops.stalls import StallMonitor
from pelotontx.services.brokers import open_broker
from pelotontx.services.limits import (
    admission,
    call_cap_of,
    channel_limits,
    http_limits,
    json_limits,
    juggler_limits,
    uri_limits,
    websocket_limits,
)
from pelotontx.services.listeners import Fronts, Listeners, load_certificates
from pelotontx.services.mounts import Mounts
from pelotontx.services.phases import Phase, Server
from pelotontx.services.watch import (
    Watched,
    shown_command_line,
    watch_debug_vars,
    watch_health,
    watch_metrics,
)
from pelotontx.services.web import application, request_class
from pelotontx.web.app import App
from pelotontx.web.mount import Host
from pelotontx.web.uploads import DiskSink

_log = Logger(namespace="pelotontx")

_BROKER_WAIT_S = 1.0
# For what a callee process does when its own `drain_timeout` is over: it cancels what still runs,
# names it in the log and closes its connections.
_KILL_GRACE_S = 2.0


def build(config: Config, *, reactor: Any, instead: App | None = None, **hooks: Any) -> Server:
    """Everything that `config` names, not started.

    Args:
        config: checked.
        reactor: everything lives on it.
        instead: answers all requests in place of what the configuration names.
        hooks: `Server`'s; without `on_failure` a failed start is logged and ends the reactor.

    Raises:
        ConfigError: an object that a dotted name stands for is missing or of another kind.
    """
    hooks.setdefault("on_failure", partial(_end, reactor))
    return _Builder(config, reactor, instead).build(Server(**hooks))


def _end(reactor: Any, error: BaseException) -> None:
    _log.critical("The server cannot start: {error}", error=error)
    reactor.callWhenRunning(reactor.stop)


def callee_service(
    callee: Callee,
    config: Config,
    *,
    concurrency: int = 256,
    threads: int = 8,
    reactor: Any,
    on_failure: Callable[[], object],
) -> IService:
    """A callee with a broker connection of its own, for a process of its own.

    Args:
        callee: the functions.
        config: whose ``broker.url`` is ``redis://`` or ``unix://``.
        concurrency: see `CalleeService`.
        threads: see `CalleeService`.
        reactor: everything lives on it.
        on_failure: called when it cannot start, or takes no calls any more; that is logged.
    """

    def cannot_start(error: BaseException) -> None:
        _log.critical("The callee cannot start: {error}", error=error)
        on_failure()

    broker = open_broker(reactor, config.broker.url, config.broker)
    runner = CalleeService(
        callee,
        broker.callee,
        clock=reactor,
        concurrency=concurrency,
        threads=threads,
        result_limit_bytes=config.rpc.result_limit_bytes,
        stop_timeout_s=config.server.drain_timeout_s,
        on_failure=on_failure,
    )
    server = Server(on_failure=cannot_start)
    server.add(Phase("broker", start=broker.start, stop=broker.stop))
    server.add(Phase("callee", start=runner.startService, stop=runner.stopService))
    return server


class _Builder:
    """Wires one server; an attribute a part."""

    def __init__(self, config: Config, reactor: Any, instead: App | None) -> None:
        self.config = config
        self.reactor = reactor
        self.instead = instead
        self.wheel = Wheel(reactor)
        self.valkey: EmbeddedValkey | None = None
        url = config.broker.url
        if url == "embedded:":
            self.valkey = EmbeddedValkey(reactor)
            url = self.valkey.url
        self.broker_url = url
        call_cap = call_cap_of(config.broker.call_cap, config.uri)
        self.broker = self.events_broker = open_broker(reactor, url, config.broker, call_cap)
        if config.broker.pubsub_url:
            self.events_broker = open_broker(reactor, config.broker.pubsub_url, config.broker)
        self.hub = Hub(
            caller=self.broker.caller,
            pubsub=self.events_broker.pubsub,
            wheel=self.wheel,
            pending_limit=config.broker.result_cap,
            json_limits=json_limits(config.rpc),
        )
        self.endpoint = self._endpoint()
        self.admission = admission(config.server, reactor)
        self.websockets = ServerFactory(
            reactor,
            wheel=self.wheel,
            accept=self.endpoint.accept,
            limits=websocket_limits(config.websocket),
            origins=config.websocket.origins,
            admission=self.admission,
        )
        self.health = health.Health(reactor, version=pelotontx.__version__)
        self.metrics = metrics.Metrics(reactor)
        self.debug_vars = debug_vars.DebugVars(shown_command_line(sys.argv))
        self.access_log = self._access_log()
        self.uploads = DiskSink(
            reactor,
            folder=config.upload.folder or None,
            memory_bytes=config.upload.memory_limit_bytes,
            threads=config.upload.threads,
        )
        self.request_class = request_class(config, self.broker.sessions, self.uploads)
        self.mounts = self._mounts()
        self.fronts = Fronts(self._http, self._handle)
        self.listeners = Listeners(
            reactor,
            listen=config.server.listen,
            tables=config.listener,
            certificates=load_certificates(config.listener),
            fronts=self.fronts,
            admission=self.admission,
            wheel=self.wheel,
            proxies=self.request_class.proxies,
        )
        self.watched = Watched(
            endpoint=self.endpoint,
            hub=self.hub,
            broker=self.broker,
            events_broker=self.events_broker,
            admission=self.admission,
            http=self.fronts,
            listeners=self.listeners,
            access_log=self.access_log,
            websockets=self.websockets,
            stalls=StallMonitor(reactor),
        )
        if self.valkey is not None:
            valkey = self.valkey
            self.watched.processes["broker", "valkey"] = lambda: [valkey.state()]
        self.backend = [self._callee(n, callee) for n, callee in enumerate(config.callee)]
        watch_health(self.health, self.watched, config=config)
        watch_metrics(self.metrics, self.watched)
        watch_debug_vars(self.debug_vars, self.watched)

    def build(self, server: Server) -> Server:
        stalls = self.watched.stalls
        server.add(Phase("stall monitor", start=stalls.start, stop=stalls.stop))
        if self.access_log is not None:
            # First, so that it is the last to stop: it writes down what draining answers.
            server.add(Phase("access log", start=self._open_log, stop=self.access_log.stop))
            server.on_refresh(self.access_log.reopen)
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
        server.add(Phase("uploads", start=self._check_uploads, stop=self.uploads.stop))
        server.add(Phase("mounts", start=self.mounts.start, stop=self.mounts.stop))
        server.add(Phase("clients", stop=self._tell_clients))
        server.add(
            Phase(
                "listeners",
                start=lambda: Deferred.fromCoroutine(self.listeners.start(server.ports)),
                stop=lambda: self._unlisten(server.ports),
            )
        )
        server.on_refresh(self.listeners.refresh)
        notifier = Notifier(self.reactor, os.environ)
        server.add(Phase("systemd", start=notifier.ready, stop=notifier.stopping))
        return server

    # Phases

    async def _start_valkey(self, valkey: EmbeddedValkey) -> None:
        valkey.startService()
        await valkey.ready

    def _start_broker(self) -> Deferred[None]:
        async def start() -> None:
            if self.valkey is not None:
                await self._start_valkey(self.valkey)
            for broker in self._brokers():
                broker.start()

        return Deferred.fromCoroutine(start())

    def _stop_broker(self) -> Deferred[None]:
        async def stop() -> None:
            for broker in self._brokers():
                await broker.stop()
            if self.valkey is not None:
                await self.valkey.stopService()
            self.wheel.stop()

        return Deferred.fromCoroutine(stop())

    def _brokers(self) -> tuple[Broker, ...]:
        return tuple({id(broker): broker for broker in (self.broker, self.events_broker)}.values())

    def _start_hub(self) -> Deferred[None]:
        async def start() -> None:
            self.hub.start()
            # A broker that is there is connected within milliseconds: the first client need not be
            # refused. One that is down must not hold the server up.
            deadline_s = self.reactor.seconds() + _BROKER_WAIT_S
            while not self.watched.is_available and self.reactor.seconds() < deadline_s:
                await later(self.reactor, 0.01)

        return Deferred.fromCoroutine(start())

    def _stop_hub(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.hub.stop())

    def _tell_clients(self) -> Deferred[Any]:
        timeout_s = self.config.server.drain_timeout_s
        return gatherResults(
            [
                Deferred.fromCoroutine(self.endpoint.drain(timeout_s)),
                self.fronts.drain(timeout_s),
                self.mounts.drain(timeout_s),
            ]
        )

    def _check_uploads(self) -> None:
        folder = self.config.upload.folder
        if folder and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError("upload.folder", f"{folder} is no folder that can be written to")

    def _open_log(self) -> None:
        assert self.access_log is not None
        try:
            self.access_log.start()
        except ConfigError as error:
            raise ConfigError("access_log.path", str(error)) from None

    def _unlisten(self, ports: list[IListeningPort]) -> Deferred[Any]:
        self.health.is_stopping = True
        return self.listeners.stop(ports)

    # Parts

    def _access_log(self) -> AccessLog | None:
        config = self.config.access_log
        if not config.path:
            return None
        return AccessLog(self.reactor, config.path, format=config.format, query=config.query)

    def _mounts(self) -> Mounts:
        host = Host(
            reactor=self.reactor,
            wheel=self.wheel,
            websocket_limits=websocket_limits(self.config.websocket),
            origins=self.config.websocket.origins,
            admission=self.admission,
        )
        return Mounts(self.config, host)

    def _handle(self, serves: str) -> Handle:
        app = self.instead or application(
            self.config,
            websockets=self.websockets,
            health_state=self.health,
            metrics_registry=self.metrics,
            variables=self.debug_vars,
            mounts=self.mounts,
            serves=serves,
        )
        return app.handle

    def _http(self, handle: Handle) -> HTTPFactory:
        return HTTPFactory(
            handle,
            wheel=self.wheel,
            clock=self.reactor,
            limits=http_limits(self.config.http),
            request_class=self.request_class,
            admission=self.admission,
            on_answered=None if self.access_log is None else self.access_log.answered,
        )

    def _endpoint(self) -> juggler.JugglerEndpoint:
        config = self.config
        limits = juggler_limits(config.rpc, config.websocket)
        gateway = None
        if config.rpc.gateway:
            gateway = load_kind(config.rpc.gateway, "rpc.gateway", juggler.Gateway)
        return juggler.JugglerEndpoint(
            hub=self.hub,
            clock=self.reactor,
            wheel=self.wheel,
            limits=limits,
            uri_limits=uri_limits(limits, config.uri),
            channel_limits=channel_limits(limits, config.channel),
            json_limits=json_limits(config.rpc),
            allow_empty_subprotocol=config.websocket.allow_empty_subprotocol,
            gateway=gateway,
        )

    def _callee(self, index: int, config: CalleeConfig) -> IService:
        name = f"callee[{index}]"
        if config.processes:
            return self._callee_processes(name, config)
        service = CalleeService(
            load_kind(config.object, f"{name}.object", Callee),
            self.broker.callee,
            clock=self.reactor,
            concurrency=config.concurrency,
            threads=config.threads,
            result_limit_bytes=self.config.rpc.result_limit_bytes,
            stop_timeout_s=self.config.server.drain_timeout_s,
        )
        self.health.add(name, lambda: (service.is_taking, {"object": config.object}))
        self.watched.callees[name, config.object] = service
        return service

    def _callee_processes(self, name: str, config: CalleeConfig) -> Supervisor:
        supervisor = Supervisor(
            self.reactor,
            command=[
                *(sys.executable, "-m", "pelotontx", "callee", config.object),
                *("--concurrency", str(config.concurrency)),
                *("--threads", str(config.threads)),
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
            stop_timeout_s=self.config.server.drain_timeout_s + _KILL_GRACE_S,
        )
        self.health.add(
            name,
            lambda: (
                not supervisor.has_failed,
                {"object": config.object, "processes": supervisor.state()},
            ),
        )
        self.watched.processes[name, config.object] = supervisor.state
        return supervisor

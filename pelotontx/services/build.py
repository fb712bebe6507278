"""What a server is made of, how it starts and how it stops.

Start: broker, backend, gateway, listeners. Stop: the listeners close, clients are told and what is
in flight ends (bounded), then the backend stops, then the broker.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

import pelotontx
from pelotontx.broker.hub import Hub
from pelotontx.config import Config, load_kind
from pelotontx.errors import ConfigError
from pelotontx.flow import later
from pelotontx.gateway import juggler
from pelotontx.net.http import Handle, HTTPFactory
from pelotontx.net.systemd import Notifier
from pelotontx.net.websocket import ServerFactory
from pelotontx.net.wheel import Wheel
from pelotontx.ops import debug_vars, health, metrics
from pelotontx.ops.access_log import AccessLog
from pelotontx.ops.stalls import StallMonitor
from pelotontx.services.brokers import Brokers
from pelotontx.services.callees import Callees
from pelotontx.services.limits import (
    admission,
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
from pelotontx.services.web import application, for_hosts, request_class
from pelotontx.web import App
from pelotontx.web.mount import Host
from pelotontx.web.uploads import DiskSink

_log = Logger(namespace="pelotontx")

_BROKER_WAIT_S = 1.0


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


class _Builder:
    """Wires one server; an attribute a part."""

    def __init__(self, config: Config, reactor: Any, instead: App | None) -> None:
        self.config = config
        self.reactor = reactor
        self.instead = instead
        self.wheel = Wheel(reactor)
        self.brokers = Brokers(reactor, config)
        self.hub = Hub(
            caller=self.brokers.main.caller,
            pubsub=self.brokers.events.pubsub,
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
        self.request_class = request_class(config, self.brokers.main.sessions, self.uploads)
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
        self.watched = self._watched()
        self.callees = Callees(
            reactor, config, brokers=self.brokers, health=self.health, watched=self.watched
        )
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
        server.add(Phase("broker", start=self.brokers.start, stop=self._stop_broker))
        server.add(Phase("backend", start=self.callees.start, stop=self.callees.stop))
        server.add(Phase("hub", start=self._start_hub, stop=self.hub.stop))
        server.add(Phase("uploads", start=self._check_uploads, stop=self.uploads.stop))
        server.add(Phase("mounts", start=self.mounts.start, stop=self.mounts.stop))
        server.add(Phase("clients", stop=self._tell_clients))
        server.add(
            Phase(
                "listeners",
                start=lambda: self.listeners.start(server.ports),
                stop=lambda: self._unlisten(server.ports),
            )
        )
        server.on_refresh(self.listeners.refresh)
        notifier = Notifier(self.reactor, os.environ)
        server.add(Phase("systemd", start=notifier.ready, stop=notifier.stopping))
        return server

    # Phases

    async def _stop_broker(self) -> None:
        await self.brokers.stop()
        self.wheel.stop()

    async def _start_hub(self) -> None:
        self.hub.start()
        # A broker that is there is connected within milliseconds: the first client need not be
        # refused. One that is down must not hold the server up.
        deadline_s = self.reactor.seconds() + _BROKER_WAIT_S
        while not self.watched.is_available and self.reactor.seconds() < deadline_s:
            await later(self.reactor, 0.01)

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

    def _watched(self) -> Watched:
        watched = Watched(
            endpoint=self.endpoint,
            hub=self.hub,
            broker=self.brokers.main,
            events_broker=self.brokers.events,
            admission=self.admission,
            http=self.fronts,
            listeners=self.listeners,
            access_log=self.access_log,
            websockets=self.websockets,
            stalls=StallMonitor(self.reactor),
        )
        valkey = self.brokers.valkey
        if valkey is not None:
            watched.processes["broker", "valkey"] = lambda: [valkey.state()]
        return watched

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
        return for_hosts(self.config, app.handle, serves)

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

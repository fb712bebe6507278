"""Callees: those that run beside a server or as its processes, and one in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from pelotontx.backend.callee import Callee, CalleeService
from pelotontx.backend.supervisor import Supervisor
from pelotontx.config import CalleeConfig, Config, as_environment, load_kind
from pelotontx.ops.health import Health
from pelotontx.services.brokers import Brokers, open_broker
from pelotontx.services.phases import Phase, Server
from pelotontx.services.watch import Watched

# For what a callee process does when its own `drain_timeout` is over: it cancels what still runs,
# names it in the log and closes its connections.
_KILL_GRACE_S: Final = 2.0

_log = Logger(namespace="pelotontx")


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


class Callees:
    """What the ``[[callee]]`` tables of a server ask for; each is watched.

    Raises:
        ConfigError: an object that a dotted name stands for is missing or of another kind.
    """

    def __init__(
        self, reactor: Any, config: Config, *, brokers: Brokers, health: Health, watched: Watched
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._brokers = brokers
        self._health = health
        self._watched = watched
        self._services = [
            self._processes(f"callee[{index}]", table)
            if table.processes
            else self._service(f"callee[{index}]", table)
            for index, table in enumerate(config.callee)
        ]

    def start(self) -> None:
        """Starts them all."""
        for service in self._services:
            service.startService()

    def stop(self) -> Deferred[Any]:
        """Stops them at the same time; each is bounded."""
        return gatherResults([maybeDeferred(service.stopService) for service in self._services])

    def _service(self, name: str, table: CalleeConfig) -> IService:
        service = CalleeService(
            load_kind(table.object, f"{name}.object", Callee),
            self._brokers.main.callee,
            clock=self._reactor,
            concurrency=table.concurrency,
            threads=table.threads,
            result_limit_bytes=self._config.rpc.result_limit_bytes,
            stop_timeout_s=self._config.server.drain_timeout_s,
        )
        self._health.add(name, lambda: (service.is_taking, {"object": table.object}))
        self._watched.callees[name, table.object] = service
        return service

    def _processes(self, name: str, table: CalleeConfig) -> IService:
        supervisor = Supervisor(
            self._reactor,
            command=[
                *(sys.executable, "-m", "pelotontx", "callee", table.object),
                *("--concurrency", str(table.concurrency)),
                *("--threads", str(table.threads)),
            ],
            count=table.processes,
            name=table.object,
            # In the environment, where no other user can read a password.
            environ={
                **os.environ,
                **as_environment(self._config),
                "PELOTON_BROKER__URL": self._brokers.url,
                "PELOTON_LOG__FORMAT": "text",  # the supervisor reads the level off it
            },
            stop_timeout_s=self._config.server.drain_timeout_s + _KILL_GRACE_S,
        )
        self._health.add(
            name,
            lambda: (
                not supervisor.has_failed,
                {"object": table.object, "processes": supervisor.state()},
            ),
        )
        self._watched.processes[name, table.object] = supervisor.state
        return supervisor

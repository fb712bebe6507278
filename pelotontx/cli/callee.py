"""`peloton callee`: a process that serves functions."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from pelotontx.config import load, load_object, without_password
from pelotontx.errors import ConfigError
from pelotontx.flow import spare_collector
from pelotontx.net import reactor as peloton_reactor
from pelotontx.net.process import end_at_next_signal
from pelotontx.ops.logging import observer

# Where calls come from when nobody says: what a developer's machine has.
BROKER = "redis://127.0.0.1:6379"
BROKER_VARIABLE = "PELOTON_BROKER__URL"

_log = Logger()


def run(name: str, *, broker_url: str | None, concurrency: int, threads: int) -> int:
    """Serves the callee called `name` until SIGTERM or SIGINT.

    Args:
        name: ``module:object`` of a `pelotontx.backend.callee.Callee`.
        broker_url: where calls come from; None: what the environment or `BROKER` says.
        concurrency: how many calls are taken and run at a time.
        threads: how many plain functions run at once.

    Returns:
        the exit status.
    """
    reactor = peloton_reactor.install()
    # Only now: the user's module and the services may import the reactor.
    from pelotontx.backend.callee import Callee
    from pelotontx.services import callee_service

    sys.path.insert(0, "")
    try:
        config = load(
            None,
            environ={BROKER_VARIABLE: BROKER, **os.environ},
            overrides={"broker.url": broker_url},
        )
        globalLogBeginner.beginLoggingTo(
            [observer(sys.stderr, level=config.log.level, format=config.log.format)],
            redirectStandardIO=False,
        )
        callee = load_object(name, "MODULE:OBJECT")
        if not isinstance(callee, Callee):
            raise ConfigError("MODULE:OBJECT", f'"{name}" is not a pelotontx.backend.callee.Callee')
        service = callee_service(
            callee, config, concurrency=concurrency, threads=threads, reactor=reactor
        )
    except ConfigError as error:
        print(f"peloton callee: {error}", file=sys.stderr)
        return 1
    return _serve(reactor, service, name, without_password(config.broker.url))


def _serve(reactor: Any, service: IService, name: str, url: str) -> int:
    """Runs the service; the reactor's own handling of signals asks it to stop and waits for it."""
    status = 0

    def failed(failure: Failure) -> None:
        nonlocal status
        status = 1
        _log.failure("The callee cannot start", failure)
        reactor.stop()

    def start() -> Deferred[Any]:
        # Signals are handled from here on.
        spare_collector()
        _log.info("Serving {name} from {url}", name=name, url=url)
        return maybeDeferred(service.startService).addErrback(failed)

    service.privilegedStartService()
    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", end_at_next_signal)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return status

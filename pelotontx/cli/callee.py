"""`peloton callee`: a process that serves functions."""

from __future__ import annotations

import sys
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from pelotontx.config import load_object, without_password
from pelotontx.errors import ConfigError
from pelotontx.net import reactor as peloton_reactor

_log = Logger()


def run(name: str, *, broker_url: str, concurrency: int) -> int:
    """Serves the callee called `name` until SIGTERM or SIGINT.

    Args:
        name: ``module:object`` of a `pelotontx.backend.callee.Callee`.
        broker_url: where calls come from.
        concurrency: how many functions run at once.

    Returns:
        the exit status.
    """
    reactor = peloton_reactor.install()
    # Only now: the user's module and the services may import the reactor.
    from pelotontx.backend.callee import Callee
    from pelotontx.services import callee_service

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    sys.path.insert(0, "")
    try:
        callee = load_object(name, "MODULE:OBJECT")
        if not isinstance(callee, Callee):
            raise ConfigError("MODULE:OBJECT", f'"{name}" is not a pelotontx.backend.callee.Callee')
        service = callee_service(
            callee, broker_url=broker_url, concurrency=concurrency, reactor=reactor
        )
    except ConfigError as error:
        print(f"peloton callee: {error}", file=sys.stderr)
        return 1
    return _serve(reactor, service, name, without_password(broker_url))


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
        _log.info("Serving {name} from {url}", name=name, url=url)
        return maybeDeferred(service.startService).addErrback(failed)

    service.privilegedStartService()
    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return status

"""`peloton callee`: a process that serves functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from twisted.application.service import IService
from twisted.logger import Logger, globalLogBeginner

from pelotontx.config import load, load_object, without_password
from pelotontx.errors import ConfigError
from pelotontx.flow import spare_collector
from pelotontx.net import reactor as peloton_reactor
from pelotontx.net.process import end_at_next_signal
from pelotontx.ops.logging import observer

# Where calls come from when nobody says: what a developer's machine has.
BROKER = "redis://127.0.0.1:6379"
BROKER_VARIABLE = "PELOTON_BROKER__URL"
# In the log line that tells what is served.
_URIS_SHOWN: Final = 20

_log = Logger()


def run(name: str, *, broker_url: str | None, concurrency: int, threads: int) -> int:
    """Serves the callee called `name` until SIGTERM or SIGINT.

    Args:
        name: ``module:object`` of a `pelotontx.backend.callee.Callee`.
        broker_url: where calls come from; None: what the environment or `BROKER` says.
        concurrency: how many calls are taken and run at a time.
        threads: how many plain functions run at once.

    Returns:
        the exit status; 1 also when it takes calls no more, so that whoever keeps it up starts it
        again.
    """
    reactor = peloton_reactor.install()
    # Only now: the user's module and the services may import the reactor.
    from pelotontx.backend.callee import Callee
    from pelotontx.services import callee_service

    status = 0

    def failed() -> None:
        nonlocal status
        if status == 0:
            status = 1
            reactor.stop()

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
        if config.broker.url in ("memory:", "embedded:"):
            raise ConfigError(
                "broker.url",
                f"{config.broker.url} is inside a server; a callee needs a redis:// URL",
            )
        callee = load_object(name, "MODULE:OBJECT")
        if not isinstance(callee, Callee):
            raise ConfigError("MODULE:OBJECT", f'"{name}" is not a pelotontx.backend.callee.Callee')
        service = callee_service(
            callee,
            config,
            concurrency=concurrency,
            threads=threads,
            reactor=reactor,
            on_failure=failed,
        )
    except ConfigError as error:
        print(f"peloton callee: {error}", file=sys.stderr)
        return 1
    url = without_password(config.broker.url)
    _serve(reactor, service, partial(_tell, name, url, tuple(callee.functions)))
    return status


def _tell(name: str, url: str, uris: Sequence[str]) -> None:
    if not uris:
        _log.warn("{name} has no functions: nothing will be served", name=name)
    shown = ", ".join(uris[:_URIS_SHOWN])
    if len(uris) > _URIS_SHOWN:
        shown += f" and {len(uris) - _URIS_SHOWN} more"
    _log.info("Serving {name} from {url}: {uris}", name=name, url=url, uris=shown)


def _serve(reactor: Any, service: IService, on_start: Callable[[], object]) -> None:
    """Runs the service; the reactor's own handling of signals asks it to stop and waits for it."""

    def start() -> None:
        # Signals are handled from here on.
        spare_collector()
        on_start()
        service.startService()

    service.privilegedStartService()
    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", end_at_next_signal)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()

"""Runs a `Plan` from start to report; see `options.EPILOG` for the exit statuses."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError

from pelotontx.cli.load import metrics, report
from pelotontx.cli.load.driver import Driver
from pelotontx.cli.load.options import Plan
from pelotontx.cli.load.progress import Progress
from pelotontx.cli.running import INTERRUPTED, run_main
from pelotontx.cli.texts import with_hint
from pelotontx.errors import PelotonError, RequestRefused
from pelotontx.flow import later, spare_collector
from pelotontx.net import reactor as peloton_reactor

_NO_CONNECTION: Final = 2
# Files besides the connections.
_DESCRIPTORS: Final = 64
# The server's clock of deadlines ticks every 0.1 s: by then it has counted our last expired calls.
_SETTLED_S: Final = 0.25


def run(plan: Plan) -> int:
    """Does what `plan` says; the report goes to stdout, progress and errors to stderr.

    Returns:
        the exit status.
    """
    reactor = peloton_reactor.install()
    progress = Progress(sys.stderr, time.perf_counter())

    def show(driver: Driver) -> None:
        if not plan.is_quiet:
            progress.show(driver, time.perf_counter())

    driver = Driver(plan, reactor=reactor, on_progress=show)
    _raise_descriptor_limit(driver.connections + _DESCRIPTORS)
    _interrupt_at_signals(reactor, driver)
    spare_collector()
    return run_main(reactor, lambda: _main(reactor, driver, progress), handles_signals=False)


def _raise_descriptor_limit(wanted: int) -> None:
    """As far as the system allows; what is missing then shows when connecting."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _interrupt_at_signals(reactor: Any, driver: Driver) -> None:
    """The first signal ends the run with its report, the second ends the process."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        reactor.callFromThread(driver.interrupt)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


async def _main(reactor: Any, driver: Driver, progress: Progress) -> int:
    plan = driver.plan
    urls = metrics.candidates(plan.url) if plan.metrics_url is None else [plan.metrics_url]
    urls = [url for url in urls if url]
    try:
        before = await metrics.fetch(reactor, urls)
        if before is None and plan.metrics_url:
            print(f"peloton load: no metrics at {plan.metrics_url}", file=sys.stderr)
        if driver.is_interrupted:
            return INTERRUPTED
        await driver.open()
        await driver.drive()
        server = None if before is None else await _server(reactor, *before)
    except (PelotonError, CancelledError) as error:
        if driver.is_interrupted:
            return INTERRUPTED
        progress.end()
        return _no_connection(driver, error)
    finally:
        progress.end()
        await driver.close()
    return _show(report.summary(driver, server), plan.json_path)


async def _server(
    reactor: Any, url: str, before: Mapping[str, float]
) -> Mapping[str, float] | None:
    """What the server has counted since `before`, on the same page."""
    await later(reactor, _SETTLED_S)
    after = await metrics.fetch(reactor, [url])
    return None if after is None else metrics.difference(before, after[1])


def _no_connection(driver: Driver, error: Exception) -> int:
    text = str(error)
    if isinstance(error, RequestRefused):
        text = f"a SUB was refused: {error}"
    which = ""
    if driver.opened:
        which = f"after {driver.opened:,} of {driver.connections:,} connections: "
    print(f"peloton load: {which}{with_hint(text)}", file=sys.stderr)
    return _NO_CONNECTION


def _show(figures: Mapping[str, Any], json_path: str | None) -> int:
    status = 0 if figures["ok"] else 1
    encoded = msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n"
    if json_path == "-":
        sys.stdout.write(encoded)
        return status
    print(report.render(figures))
    if json_path is not None:
        try:
            with open(json_path, "w", encoding="utf-8") as file:
                file.write(encoded)
        except OSError as error:
            print(f"peloton load: {json_path}: {os.strerror(error.errno or 0)}", file=sys.stderr)
            return 1
    return status

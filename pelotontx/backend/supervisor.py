"""Worker and server processes, restarted when they die.

For `pelotontx.services`: one `Supervisor` for each command of the configuration.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from pelotontx.net.kept import KeptProcess, ProcessState

# How `pelotontx.ops.logging` begins a line: time and level.
_LEVELLED = re.compile(r"\S+ (debug|info|warn|error|critical) +")

# A command that ends this often this fast is broken: restarting it only burns the machine.
_GIVE_UP_AFTER = 5
_GIVE_UP_WINDOW_S = 10.0


class Supervisor(Service):
    """Keeps `count` processes of one command running.

    One that ends is started again after 0.1 s, doubling to 5 s; after 5 ends within 10 s it stays
    down, and says so in the log and in `state`. They get SIGTERM when we die, by kill -9 too.

    Args:
        reactor: see `pelotontx.net.process.ChildProcess`.
        command: the program and its arguments.
        count: how many.
        name: process N is called ``name[N]``, from 0.
        environ: the whole environment; None hands on ours.
        stop_timeout_s: how long a process may take to end its work after SIGTERM, before SIGKILL.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        command: Sequence[str],
        count: int,
        name: str,
        environ: Mapping[str, str] | None = None,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self._levels: dict[str, Any] = {}
        self._stop_timeout_s = stop_timeout_s
        self._kept = [
            KeptProcess(
                reactor,
                command,
                name=f"{name}[{index}]",
                on_line=partial(self._log_line, f"{name}[{index}]"),
                environ=environ,
                death_signal=signal.SIGTERM,
                give_up_after=_GIVE_UP_AFTER,
                give_up_window_s=_GIVE_UP_WINDOW_S,
            )
            for index in range(count)
        ]

    @property
    def has_failed(self) -> bool:
        """Whether one of them was given up: somebody must look."""
        return any(kept.state()["state"] == "failed" for kept in self._kept)

    def state(self) -> list[ProcessState]:
        """One entry a process, for /health."""
        return [kept.state() for kept in self._kept]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        for kept in self._kept:
            kept.start()

    def stopService(self) -> Deferred[None]:
        """Stops all at the same time; fires when the last one is reaped."""
        super().stopService()  # type: ignore[no-untyped-call]
        stops = [kept.stop(timeout_s=self._stop_timeout_s) for kept in self._kept]
        return gatherResults(stops).addCallback(lambda results: None)

    def _log_line(self, label: str, line: str) -> None:
        """Logs a line of a process at the level that it names; further lines (tracebacks) too."""
        match = _LEVELLED.match(line)
        if match is not None:
            self._levels[label] = LogLevel.levelWithName(match[1])
            line = line[match.end() :]
        level = self._levels.get(label, LogLevel.info)
        self._log.emit(level, "{label}: {line}", label=label, line=line)

"""Programs that are started again when they end.

For the embedded Valkey and the supervisor of workers.
"""

from __future__ import annotations

import random
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.net.process import ChildProcess, ExitStatus


class Backoff:
    """Delays that double from `first_s` to `limit_s`; half of each is random.

    The random half keeps N processes that died together from coming back together.

    Args:
        first_s: the first delay.
        limit_s: no delay is longer.
        draw: a number in [0, 1).
    """

    def __init__(
        self,
        *,
        first_s: float = 0.1,
        limit_s: float = 5.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self.limit_s = limit_s
        self._draw = draw
        self._next_s = first_s

    def next_s(self) -> float:
        delay_s = self._next_s * (0.5 + 0.5 * self._draw())
        self._next_s = min(self._next_s * 2, self.limit_s)
        return delay_s

    def reset(self) -> None:
        self._next_s = self._first_s


class ProcessState(TypedDict):
    """What /health says of a process.

    `state` is ``running``, ``waiting`` (for its next start), ``failed`` (given up), ``stopping`` or
    ``stopped``; `for_s` is for how long.
    """

    name: str
    pid: int | None
    state: str
    restarts: int
    for_s: float


class KeptProcess:
    """A program that is started again when it ends, until `stop`.

    Args:
        reactor: see `ChildProcess`.
        arguments: the command.
        name: for log lines and `state`.
        on_line: see `ChildProcess`.
        on_start: called with each new run.
        on_exit: called when a run has ended, before the next is planned.
        environ: see `ChildProcess`.
        death_signal: see `ChildProcess`.
        backoff: the delays between an end and the next start; begins anew after a run as long as
            its longest delay.
        give_up_after: so many ends within `give_up_window_s` and it stays down; None: never.
        give_up_window_s: see `give_up_after`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        arguments: Sequence[str],
        *,
        name: str,
        on_line: Callable[[str], object],
        on_start: Callable[[ChildProcess], object] = lambda child: None,
        on_exit: Callable[[], object] = lambda: None,
        environ: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
        backoff: Backoff | None = None,
        give_up_after: int | None = None,
        give_up_window_s: float = 10.0,
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._arguments = arguments
        self._on_line = on_line
        self._on_start = on_start
        self._on_exit = on_exit
        self._environ = environ
        self._death_signal = death_signal
        self._backoff = Backoff() if backoff is None else backoff
        self._ends: deque[float] = deque(maxlen=give_up_after or 0)
        self._give_up_window_s = give_up_window_s
        self._child: ChildProcess | None = None
        self._retry: IDelayedCall | None = None
        self._is_wanted = False
        self._state = "stopped"
        self._since = 0.0
        self._restarts = 0

    def state(self) -> ProcessState:
        pid = None if self._child is None else self._child.pid
        return {
            "name": self.name,
            "pid": pid,
            "state": self._state,
            "restarts": self._restarts,
            "for_s": round(self._reactor.seconds() - self._since, 3),
        }

    def start(self) -> None:
        """Starts the first run; after `stop` or after it has failed, begins anew."""
        self._is_wanted = True
        self._ends.clear()
        self._backoff.reset()
        if self._child is None and self._retry is None:
            self._spawn()

    def stop(self, *, timeout_s: float = 10.0) -> Deferred[None]:
        """Ends it for good; see `ChildProcess.stop`."""
        self._is_wanted = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._child is None:
            self._enter("stopped")
            return succeed(None)
        self._enter("stopping")
        return self._child.stop(timeout_s=timeout_s)

    def _spawn(self) -> None:
        self._retry = None
        self._enter("running")
        child = self._child = ChildProcess(
            self._reactor,
            self._arguments,
            name=self.name,
            on_line=self._on_line,
            environ=self._environ,
            death_signal=self._death_signal,
        )
        try:
            child.start()
        except OSError as error:  # too many processes or descriptors: passes, or is given up
            self._ended(error)
        else:
            self._on_start(child)
            child.exited.addCallback(self._ended).addErrback(self._failed)

    def _ended(self, status: ExitStatus | OSError) -> None:
        self._child = None
        now = self._reactor.seconds()
        if now - self._since >= self._backoff.limit_s:
            self._backoff.reset()
        self._on_exit()
        if not self._is_wanted:
            self._enter("stopped")
        elif self._is_hopeless(now):
            self._enter("failed")
            self._log.critical(
                "{name} ended {count} times within {window_s} s ({status}): it stays down",
                name=self.name,
                count=len(self._ends),
                window_s=self._give_up_window_s,
                status=status,
            )
        else:
            self._spawn_later(status)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("{name} is not looked after any more", failure, name=self.name)

    def _is_hopeless(self, now: float) -> bool:
        self._ends.append(now)
        is_full = self._ends.maxlen != 0 and len(self._ends) == self._ends.maxlen
        return is_full and now - self._ends[0] <= self._give_up_window_s

    def _spawn_later(self, status: ExitStatus | OSError) -> None:
        delay_s = self._backoff.next_s()
        self._enter("waiting")
        self._restarts += 1
        self._log.error(
            "{name} ended ({status}); it is started again in {delay_s:.2f} s",
            name=self.name,
            status=status,
            delay_s=delay_s,
        )
        self._retry = self._reactor.callLater(delay_s, self._spawn)

    def _enter(self, state: str) -> None:
        self._state = state
        self._since = self._reactor.seconds()

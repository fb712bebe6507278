"""The root service: named phases that start in order and stop in reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from pelotontx.flow import Tasks


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
        self._looks: list[Callable[[], object]] = []
        self.started: Deferred[None] = Deferred()

    def add(self, phase: Phase) -> None:
        """Appends a phase."""
        self._phases.append(phase)

    def on_refresh(self, look: Callable[[], object]) -> None:
        """Has `refresh` call `look`."""
        self._looks.append(look)

    def refresh(self) -> None:
        """Looks at once at files that may have been exchanged: certificates, logs."""
        for look in self._looks:
            look()

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

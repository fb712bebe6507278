"""Threads of one's own for functions that block: a callee's, a WSGI application's, a disk's.

The reactor's pool also resolves names: slow functions would keep connections from being made.
`ThreadPool` is for a service, which stops it; `SharedThreads` for what many do here and there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, Final, Generic, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from pelotontx.wire.http import RefusedRequest

Done: TypeAlias = Callable[[Any, BaseException | None], object]
"""Told in the reactor's thread: what the function returned, or what it raised."""

_Label = TypeVar("_Label")
_T = TypeVar("_T")

# How fast the mean run time follows the last ones.
_MEAN_WEIGHT: Final = 1 / 8


class ThreadPool(Generic[_Label]):
    """Runs functions in a few threads, first in first out.

    Threads are started when there is work for them. What many of them finish while the reactor is
    busy wakes it once. The queue has no bound of its own: `unfinished` is its user's to watch. All
    methods are for the reactor's thread.

    Args:
        reactor: is told of results.
        size: most threads.
        name: threads are called ``name-1`` and so on.

    Attributes:
        unfinished: functions that wait, run, or have ended without their `Done` being told.
        mean_run_s: how long the last ones ran; long until that is known.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorFromThreads, size: int, *, name: str) -> None:
        self._reactor = reactor
        self._size = size
        self._name = name
        self._threads: list[Thread] = []
        self._work: SimpleQueue[_Job[_Label] | None] = SimpleQueue()
        self._running: dict[int, _Label] = {}
        self._finished: deque[_Job[_Label]] = deque()
        self._is_woken = False
        self._is_stopped = False
        self.unfinished = 0
        self.mean_run_s = 1.0

    @property
    def queued(self) -> int:
        """How many functions wait for a thread."""
        return self._work.qsize()

    @property
    def running(self) -> list[_Label]:
        """The labels of what runs."""
        return list(self._running.values())

    def room(self, soon_s: float) -> int:
        """How many more functions would find a free thread within about `soon_s`.

        That is a guess by the last ones, so no more than one may wait for each thread.
        """
        return int(self._size * (1 + min(1, soon_s / self.mean_run_s))) - self.unfinished

    def run(self, label: _Label, function: Callable[[], Any], done: Done) -> None:
        """Calls ``function()`` in a thread and ``done(result, error)`` here, when it has ended.

        `function` may raise anything. `label` is what `running` and `stop` call it.
        """
        self.unfinished += 1
        if len(self._threads) < min(self.unfinished, self._size):
            try:
                self._start_thread()
            except RuntimeError as error:  # the machine has no more
                if not self._threads:
                    self.unfinished -= 1
                    done(None, error)
                    return
        self._work.put(_Job(label, function, done))

    def stop(self) -> list[_Label]:
        """Forgets what waits or runs; nobody is told of its end.

        Idle threads end. The others end with what they run, or with the process: they do not keep
        it alive.

        Returns:
            the labels of what still runs.
        """
        self._is_stopped = True
        try:
            while True:
                self._work.get_nowait()
        except Empty:
            pass
        for _ in self._threads:
            self._work.put(None)
        self._finished.clear()
        self.unfinished = 0
        return self.running

    def _start_thread(self) -> None:
        number = len(self._threads) + 1
        name = f"{self._name}-{number}"
        thread = Thread(target=self._serve, args=(number,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve(self, number: int) -> None:
        """What each thread does."""
        while (job := self._work.get()) is not None:
            self._running[number] = job.label
            job.run()
            del self._running[number]
            self._finished.append(job)
            del job  # or it would be kept until the next comes
            # Set before the look at it below, cleared before the look at `_finished` in `_deliver`:
            # what is finished after that look wakes the reactor again.
            if not self._is_woken and not self._is_stopped:
                self._is_woken = True
                self._reactor.callFromThread(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False
        while self._finished:
            job = self._finished.popleft()
            self.unfinished -= 1
            self.mean_run_s += (job.run_s - self.mean_run_s) * _MEAN_WEIGHT
            try:
                job.done(job.result, job.error)
            except Exception:  # the others must be told all the same
                self._log.failure("{label} ended, and what was told of it failed", label=job.label)
            job.error = None  # its traceback holds the job: nothing is left for the collector


class _Job(Generic[_Label]):
    """One function on its way through a thread."""

    __slots__ = ("done", "error", "function", "label", "result", "run_s")

    def __init__(self, label: _Label, function: Callable[[], Any], done: Done) -> None:
        self.label = label
        self.function = function
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None
        self.run_s = 0.0

    def run(self) -> None:
        began_s = perf_counter()
        try:
            self.result = self.function()
        except BaseException as error:  # the user's code; no signal is raised in a thread
            self.error = error
        self.run_s = perf_counter() - began_s


class SharedThreads:
    """Threads for one kind of function that blocks, shared by all who call such in a process.

    What hangs in them takes no thread from anybody else. They are started when there is work, and
    end with the reactor; one that hangs does not keep the process from ending.

    Args:
        name: threads are called ``name-1`` and so on.
        size: most threads.
        waiting: functions that may wait for one, those given up included; None if those who call
            are few by nature.
    """

    def __init__(self, name: str, size: int, *, waiting: int | None = None) -> None:
        self._name = name
        self.size = size
        self._most = None if waiting is None else size + waiting

    def run(self, function: Callable[[], _T], reactor: Any = None) -> Deferred[_T]:
        """Calls a function in a thread and fires with what it returned.

        Cancelled while it waits for a thread, it is never called; later its result is dropped.

        Args:
            function: may raise anything, which is the failure.
            reactor: is told of the end; None: the process's.

        Returns:
            Errbacks with `RefusedRequest` (503) if too many wait, with `RuntimeError` if the
            machine has no thread.
        """
        if reactor is None:
            from twisted.internet import reactor  # not before somebody has chosen one
        pool = self._pool(reactor)
        if self._most is not None and pool.unfinished >= self._most:
            return fail(RefusedRequest(503, "busy"))
        wanted = [function]  # emptied by the thread or by the cancellation, whichever is first
        result: Deferred[_T] = Deferred(lambda _: wanted.clear())

        def call() -> _T | None:
            try:
                function = wanted.pop()
            except IndexError:
                return None
            return function()

        def done(value: _T, error: BaseException | None) -> None:
            if result.called:
                return  # cancelled
            if error is None:
                result.callback(value)
            else:
                result.errback(error)

        pool.run(None, call, done)
        return result

    def _pool(self, reactor: Any) -> ThreadPool[None]:
        pools: dict[SharedThreads, ThreadPool[None]] = vars(reactor).setdefault(
            "_peloton_threads", {}
        )
        pool = pools.get(self)
        if pool is None:
            pool = pools[self] = ThreadPool(reactor, self.size, name=self._name)
            # Services stop before that; until then they may need it.
            reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
        return pool

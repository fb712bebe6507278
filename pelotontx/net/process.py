"""Child processes that end when we do: `ChildProcess` is one run of one program.

For `pelotontx.net.kept`, which starts a program again when it ends, and for tests; nothing here
knows what the program does.

A reactor here is one that spawns processes (`IReactorProcess`) and keeps the time.

Three properties hold on every reactor:

- **No orphans.** The kernel signals the child when we die, by kill -9 too (PR_SET_PDEATHSIG,
  prctl(2)). It goes by the *thread* that spawned: run the reactor in the main thread.
- **Ends in order.** The child has a session of its own, so Ctrl-C in a terminal reaches us alone,
  and what it leaves behind in its process group is killed when it has ended.
- **Always reaped.** Twisted reaps on SIGCHLD, which is lost when the reactor runs without signal
  handlers (outside the main thread, inside somebody's asyncio loop) or when somebody else takes the
  wakeup descriptor. A pidfd tells the same through the reactor, and needs no signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorProcess,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")

# spawnProcess has no hook between fork and exec, so the child begins as a Python of a few lines
# that becomes the program. -I and -S: no site-packages, no environment; about 12 ms a start.
# The parent may have died before prctl was reached: then nobody would signal us. Python ignores
# SIGPIPE and SIGXFSZ, which exec would hand on, and may set LC_CTYPE (PEP 538), which environ may
# lack.
_BECOME = """
import ctypes, os, sys
parent, death_signal, ignored, lc_ctype, cwd, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(1, int(death_signal), 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(parent):
    sys.exit("the parent process is gone")
os.setsid()
for number in ignored.split(","):
    libc.signal(int(number), None)
if not lc_ctype:
    os.environ.pop("LC_CTYPE", None)
try:
    if cwd:
        os.chdir(cwd)
    os.execvp(command[0], command)
except OSError as error:
    print("cannot run %s: %s" % (command[0], error), file=sys.stderr)
    sys.stderr.flush()
    os._exit(127)
"""
_IGNORED_BY_PYTHON = f"{signal.SIGPIPE:d},{signal.SIGXFSZ:d}"

# A process that left the group (a daemon) may hold the pipes for ever: after its parent's end they
# are read for this long, then closed.
_PIPES_GRACE_S = 1.0
# Only where there is no pidfd (Linux before 5.3, a strict seccomp profile).
_POLL_S = 0.25


class Moment(Generic[T]):
    """Something that happens once, or fails once; any number may wait, before or after."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[T]] = []
        self._outcome: tuple[T] | BaseException | None = None

    @property
    def is_over(self) -> bool:
        return self._outcome is not None

    @property
    def has_happened(self) -> bool:
        return isinstance(self._outcome, tuple)

    def wait(self) -> Deferred[T]:
        """A Deferred of the caller's own: cancelling it only ends this wait."""
        waiter: Deferred[T] = Deferred(self._forget)
        if self._outcome is None:
            self._waiting.append(waiter)
        else:
            self._tell(waiter)
        return waiter

    def happen(self, result: T) -> None:
        self._end((result,))

    def fail(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, outcome: tuple[T] | BaseException) -> None:
        if self._outcome is None:
            self._outcome = outcome
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                self._tell(waiter)

    def _tell(self, waiter: Deferred[T]) -> None:
        if waiter.called:
            return  # cancelled by one that was told before it
        if isinstance(self._outcome, tuple):
            waiter.callback(self._outcome[0])
        else:
            waiter.errback(self._outcome)

    def _forget(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: one of both is set.

    Attributes:
        code: what it returned.
        signal_number: the signal that ended it.
    """

    code: int | None
    signal_number: int | None

    @classmethod
    def from_reason(cls, reason: Failure) -> ExitStatus:
        """From `ProcessDone` or `ProcessTerminated`, as Twisted tells it."""
        if isinstance(reason.value, ProcessTerminated):
            return cls(reason.value.exitCode, reason.value.signal)
        return cls(0, None)

    def __str__(self) -> str:
        if self.signal_number is None:
            return f"exit status {self.code}"
        with contextlib.suppress(ValueError):  # real-time signals have no name
            return f"killed by {signal.Signals(self.signal_number).name}"
        return f"killed by signal {self.signal_number}"


class _Lines:
    """Cuts a byte stream into lines; of a line past `limit_bytes` the rest is dropped."""

    def __init__(self, on_line: Callable[[str], object], limit_bytes: int) -> None:
        self._on_line = on_line
        self._limit_bytes = limit_bytes
        self._line = bytearray()

    def receive(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._append(first)
        for part in others:
            self._emit()
            self._append(part)

    def end(self) -> None:
        if self._line:
            self._emit()

    def _append(self, part: bytes) -> None:
        self._line += part[: self._limit_bytes - len(self._line)]

    def _emit(self) -> None:
        line = self._line.decode("utf-8", "replace").rstrip("\r")
        self._line.clear()
        self._on_line(line)


class _Reports(ProcessProtocol):
    """Hands on what Twisted tells of a process."""

    def __init__(
        self,
        lines: Mapping[int, _Lines],
        on_exit: Callable[[], object],
        on_end: Callable[[ExitStatus], object],
    ) -> None:
        self._lines = lines
        self._on_exit = on_exit
        self._on_end = on_end

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._lines[childFD].receive(data)

    def processExited(self, reason: Failure) -> None:
        self._on_exit()

    def processEnded(self, reason: Failure) -> None:
        for lines in self._lines.values():
            lines.end()
        self._on_end(ExitStatus.from_reason(reason))


@implementer(IReadDescriptor)
class _ExitDescriptor:
    """A pidfd: readable as soon as the process can be reaped (pidfd_open(2))."""

    def __init__(self, reactor: IReactorFDSet, pid: int, on_exit: Callable[[], object]) -> None:
        self._reactor = reactor
        self._on_exit = on_exit
        self._fd = os.pidfd_open(pid)
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self.close()  # it stays readable, so once is enough
        self._on_exit()

    def logPrefix(self) -> str:
        return "pidfd"

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def close(self) -> None:
        if self._fd != -1:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1


class ChildProcess:
    """One run of a program, tied to our life.

    Args:
        reactor: spawns, reads and keeps the time.
        arguments: the command; its first word is looked up in PATH.
        name: for people, in log lines.
        on_line: gets each line of standard output and standard error, decoded as UTF-8, without
            its end.
        environ: the whole environment; None hands on ours.
        cwd: where it runs; None is where we are.
        death_signal: what the kernel sends it when we die.
        line_limit_bytes: a longer line is cut, the rest of it dropped: one line must not fill
            memory.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        arguments: Sequence[str],
        *,
        name: str,
        on_line: Callable[[str], object],
        environ: Mapping[str, str] | None = None,
        cwd: str | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
        line_limit_bytes: int = 8192,
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._arguments = list(arguments)
        self._environ = environ
        self._cwd = cwd
        self._death_signal = death_signal
        lines = {fd: _Lines(on_line, line_limit_bytes) for fd in (1, 2)}
        self._reports = _Reports(lines, self._reaped, self._end)
        # IProcessTransport, and reapProcess, which no interface names.
        self._transport: Any = None
        self._group = 0
        self._is_reaped = False
        self._descriptor: _ExitDescriptor | None = None
        self._timer: IDelayedCall | None = None  # to the kill, then to the closing of the pipes
        self._poll: IDelayedCall | None = None
        self._exited: Moment[ExitStatus] = Moment()

    @property
    def pid(self) -> int | None:
        """None before the start and once the process is reaped."""
        return None if self._is_reaped or not self._group else self._group

    @property
    def exited(self) -> Deferred[ExitStatus]:
        """A new Deferred each access: fires when the process is reaped and its pipes are closed."""
        return self._exited.wait()

    def start(self) -> None:
        """Spawns, once.

        A command that cannot be run is a line on `on_line` and exit status 127.

        Raises:
            OSError: no process, pipe or memory could be had.
        """
        assert not self._group, "a ChildProcess is one run"
        environ = dict(os.environ if self._environ is None else self._environ)
        become = [
            *(sys.executable, "-I", "-S", "-c", _BECOME),
            *(str(os.getpid()), str(int(self._death_signal)), _IGNORED_BY_PYTHON),
            *(environ.get("LC_CTYPE", ""), self._cwd or ""),
        ]
        with open(os.devnull, "rb") as null:
            # The wrapper changes the directory: with `path` Twisted would fork us, sockets and all,
            # instead of posix_spawn.
            self._transport = cast(IReactorProcess, self._reactor).spawnProcess(
                self._reports,
                sys.executable,
                [*become, *self._arguments],
                env=environ,
                childFDs={0: null.fileno(), 1: "r", 2: "r"},
            )
        if not self._is_reaped:
            self._group = self._transport.pid
            self._watch(self._group)

    def signal(self, number: signal.Signals) -> None:
        """Signals the process alone, not its group; once it is reaped, nothing happens."""
        if self.pid is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self._transport.signalProcess(int(number))

    def stop(self, *, timeout_s: float = 10.0) -> Deferred[None]:
        """SIGTERM, and SIGKILL to the whole group past the timeout.

        Fires when the process is reaped and its pipes are closed, at once if it is or never ran.
        May be called again; the earlier of both timeouts counts, and 0 kills at once. Cancelling
        only ends the wait. A process that the kernel cannot end (stuck in a dead disk) is waited
        for.
        """
        if self._transport is None:
            return succeed(None)
        if self.pid is not None:
            self._end_within(timeout_s)
        return self._exited.wait().addCallback(lambda status: None)

    def _end_within(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            self._cancel_timer()
            self._kill()
        elif self._timer is None:
            self.signal(signal.SIGTERM)
            self._timer = self._reactor.callLater(timeout_s, self._kill_late)
        elif self._timer.getTime() > self._reactor.seconds() + timeout_s:
            self._timer.reset(timeout_s)

    def _kill_late(self) -> None:
        self._timer = None
        self._kill()

    def _kill(self) -> None:
        self._kill_group()
        self.signal(signal.SIGKILL)  # it may not have come as far as its own group

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGKILL)

    def _watch(self, pid: int) -> None:
        if IReactorFDSet.providedBy(self._reactor):
            reactor = cast(IReactorFDSet, self._reactor)
            with contextlib.suppress(OSError):
                self._descriptor = _ExitDescriptor(reactor, pid, self._reap)
                return
        self._poll = self._reactor.callLater(_POLL_S, self._look)

    def _look(self) -> None:
        self._poll = None
        self._reap()
        if not self._is_reaped:
            self._poll = self._reactor.callLater(_POLL_S, self._look)

    def _reap(self) -> None:
        if not self._is_reaped:
            self._transport.reapProcess()

    def _reaped(self) -> None:
        self._is_reaped = True
        self._cancel_timer()
        if self._descriptor is not None:
            self._descriptor.close()
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if self._group:
            self._kill_group()
            self._timer = self._reactor.callLater(_PIPES_GRACE_S, self._close_pipes)

    def _close_pipes(self) -> None:
        self._timer = None
        self._transport.loseConnection()

    def _end(self, status: ExitStatus) -> None:
        self._cancel_timer()
        self._exited.happen(status)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def end_at_next_signal() -> None:
    """From now on SIGTERM or SIGINT ends this process at once, and its children with it.

    For a process that is stopping in order: whoever asks a second time does not want to wait. The
    exit status is 128 plus the signal's number.
    """

    def end(number: int, frame: object) -> None:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                for child in children.read().split():
                    os.kill(int(child), signal.SIGKILL)
        finally:
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)

"""A reactor that spawns nothing and remembers what it was asked to."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from itertools import count

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

# Past every pid that Linux can give (2**22): signalling such a group reaches nobody.
_pids = count(1 << 30)


class FakeProcess:
    """One spawned process; the test says when it writes and ends."""

    def __init__(
        self, protocol: IProcessProtocol, arguments: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        self.protocol = protocol
        self.arguments = list(arguments)
        self.environ = environ
        self.pid = next(_pids)
        self.signals: list[int] = []
        self.reap_attempts = 0
        self.has_lost_pipes = False

    def signalProcess(self, number: int) -> None:
        self.signals.append(number)

    def reapProcess(self) -> None:
        self.reap_attempts += 1

    def loseConnection(self) -> None:
        self.has_lost_pipes = True

    def write(self, data: bytes, *, fd: int = 1) -> None:
        self.protocol.childDataReceived(fd, data)

    def exit(self, code: int = 0, *, by_signal: int | None = None) -> None:
        """Ends; its pipes stay open until `close`."""
        self.reason = Failure(
            ProcessTerminated(None if by_signal else code, by_signal, 0)
            if code or by_signal
            else ProcessDone(0)
        )
        self.protocol.processExited(self.reason)

    def close(self) -> None:
        self.protocol.processEnded(self.reason)

    def end(self, code: int = 0, *, by_signal: int | None = None) -> None:
        self.exit(code, by_signal=by_signal)
        self.close()

    def kill(self) -> None:
        self.end(by_signal=signal.SIGKILL)


class ProcessReactor(MemoryReactorClock):
    """Time under control, connections in memory (`unixClients`), `processes` as asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.fails_with: OSError | None = None

    def spawnProcess(
        self,
        protocol: IProcessProtocol,
        executable: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        childFDs: Mapping[int, int | str],
    ) -> FakeProcess:
        if self.fails_with is not None:
            raise self.fails_with
        assert os.path.isabs(executable)
        process = FakeProcess(protocol, arguments, env)
        self.processes.append(process)
        return process

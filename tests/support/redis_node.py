"""One Redis server that is no business of the reactor, for `tests.support.redis_farm`."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hiredis
import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import deferLater

from tests.support.servers import redis_binary, redis_command

# Below the ports that Linux gives to outgoing connections, which could take the port of a server
# that is down for a moment. The cluster's bus listens 10000 above.
_PORTS = range(20_000, 22_700)
_BUS = 10_000


async def until(
    reactor: Any, is_so: Callable[[], Awaitable[object]], *, timeout_s: float = 30.0
) -> None:
    """Asks again and again until the answer is true; fails past the timeout."""
    deadline = reactor.seconds() + timeout_s
    while not await is_so():
        if reactor.seconds() > deadline:
            pytest.fail(f"not so within {timeout_s:g} s")
        await deferLater(reactor, 0.02)


async def together(coroutines: Iterable[Any]) -> list[Any]:
    """Runs coroutines at once; their results, in order."""
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    return await gatherResults(running, consumeErrors=True)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and so are those of their cluster buses."""
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, socket.socket() as bus_probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            bus_probe.bind(("127.0.0.1", port + _BUS))
            ports.append(port)
        if len(ports) == count:
            return ports
    pytest.fail("no free ports")


class Node:
    """One server: a data node or a Sentinel.

    Args:
        reactor: for asking it.
        port: on loopback.
        folder: its own; made at the start.
        options: further words of the command line.
        config: the text of its configuration file, which it may rewrite; None: it has none.
    """

    def __init__(
        self,
        reactor: Any,
        port: int,
        folder: Path,
        options: Sequence[str] = (),
        config: str | None = None,
    ) -> None:
        self._reactor = reactor
        self.port = port
        self.folder = folder
        self._options = list(options)
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Node {self.port} {'runs' if self.is_running else 'is down'}>"

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def command(self, *words: bytes | str | int, timeout_s: float = 5) -> Any:
        """One command over a connection of its own; an error that was answered is raised."""
        endpoint = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self.port)
        reply = await redis_command(self._reactor, endpoint, *words, timeout_s=timeout_s)
        if isinstance(reply, hiredis.HiredisError):
            raise reply
        return reply

    async def text(self, *words: bytes | str | int) -> str:
        """A reply that is text; empty when it does not answer, or with an error."""
        with suppress(ConnectError, ConnectionClosed, hiredis.HiredisError):
            reply = await self.command(*words)
            return "" if reply is None else reply.decode()
        return ""

    async def start(self) -> None:
        """Spawns it on its port, with the files that it has, and waits for its answer."""
        assert not self.is_running
        self.folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [*("setpriv", "--pdeathsig", "KILL", redis_binary()), *self._words()],
            stdin=subprocess.DEVNULL,
        )
        await until(self._reactor, self._answers)

    def _words(self) -> list[str]:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        words += ["--logfile", str(self.folder / "log"), *self._options]
        if self._config is None:
            return [*words, "--save", "", "--appendonly", "no"]
        path = self.folder / "redis.conf"
        if not path.exists():
            path.write_text(self._config)
        return [str(path), *words]

    async def _answers(self) -> bool:
        if not self.is_running:
            pytest.fail(f"redis-server ended:\n{(self.folder / 'log').read_text()}")
        return await self.text("PING") == "PONG"

    def end(self) -> None:
        """kill -9, without a reactor."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.end()

    async def restart(self) -> None:
        """kill -9, then a start on the same port, empty."""
        self.end()
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

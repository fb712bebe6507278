"""The real program: ``twistd peloton`` as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, Self

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.client import Agent

from pelotontx.client import Client
from pelotontx.net.process import ChildProcess, ExitStatus
from tests.support.servers import eventually, free_port

BIN = Path(sys.executable).parent


class Program:
    """One run of a program of ours.

    Args:
        reactor: the tests' reactor.
        arguments: behind ``twistd --nodaemon --pidfile=``, unless `command` says otherwise.
        folder: where it runs.
        environ: added to our environment.
        command: other words to start with.
    """

    def __init__(
        self,
        reactor: Any,
        *arguments: str,
        folder: Path,
        environ: dict[str, str] | None = None,
        command: tuple[str, ...] = (str(BIN / "twistd"), "--nodaemon", "--pidfile="),
    ) -> None:
        self.reactor = reactor
        self.lines: list[str] = []
        kept = {name: value for name, value in os.environ.items() if "PELOTON_" not in name}
        self.child = ChildProcess(
            reactor,
            [*command, *arguments],
            name="program",
            on_line=self.lines.append,
            cwd=str(folder),
            environ={**kept, **(environ or {})},
            death_signal=signal.SIGKILL,
        )

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def ended(self, *, timeout_s: float = 20.0) -> ExitStatus:
        """Waits for its own end."""
        ending: Deferred[ExitStatus] = self.child.exited
        return await ending.addTimeout(timeout_s, self.reactor)

    async def stop(self) -> ExitStatus:
        """SIGTERM, and its end."""
        if self.child.pid is not None:
            await self.child.stop(timeout_s=20)
        return await self.child.exited


class PelotonServer(Program):
    """``twistd peloton`` on a free port, until the end of an ``async with``."""

    def __init__(self, reactor: Any, *arguments: str, port: int | None = None, **options: Any):
        self.port = free_port() if port is None else port
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        super().__init__(reactor, "peloton", "--listen", listen, *arguments, **options)
        self.url = f"http://127.0.0.1:{self.port}"
        self.websocket_url = f"ws://127.0.0.1:{self.port}/ws"
        self._clients: list[Client] = []

    async def start(self) -> None:
        """Spawns it and waits until it listens."""
        self.child.start()

        def listens() -> bool:
            assert not self.child_has_ended, self.output
            return re.search(r"Listening on|starting on \d|Listening", self.output) is not None

        await eventually(self.reactor, listens, timeout_s=20)

    @property
    def child_has_ended(self) -> bool:
        return self.child.pid is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close(abort=True)
        await self.stop()

    async def client(self, **options: Any) -> Client:
        """A connected client, closed at the end."""
        client = Client(self.websocket_url, reactor=self.reactor, **options)
        self._clients.append(client)
        await client.connect().addTimeout(10, self.reactor)
        return client

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        response = await HTTPClient(Agent(self.reactor)).get(
            self.url + path, headers={"Connection": "close"}, timeout=5
        )
        return response.code, await response.content()


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started and that still run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]

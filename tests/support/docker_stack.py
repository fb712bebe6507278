"""The services of a compose file as processes of this machine, and a terminal for its client.

async with Stack(reactor, "compose.1.yml", folder=tmp_path) as stack:
    with stack.client() as terminal:
        terminal.type('call test.echo "hi"')
"""

from __future__ import annotations

import os
import re
import subprocess
import termios
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from tests.support import docker
from tests.support.programs import BIN, Program
from tests.support.servers import RedisServer, eventually, free_port, redis_binary

ENTRYPOINT = str(docker.FOLDER / "entrypoint")

_ADDRESS = re.compile(r"//([\w-]+):\d+")
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Stack:
    """What ``docker compose up`` would start, with the same words and settings.

    Only addresses differ: each service has a port on 127.0.0.1, and the mounted file is read where
    it is.

    Args:
        reactor: the tests' reactor.
        file: in ``docker/``.
        folder: where the programs run.
    """

    def __init__(self, reactor: Any, file: str, *, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._running = AsyncExitStack()
        self._services = docker.compose_services(file)
        self._ports = {"server": free_port()}
        self.redises: dict[str, RedisServer] = {}

    async def __aenter__(self) -> Self:
        try:
            for name, service in self._services.items():
                if service["image"].startswith("redis:"):
                    await self._start_redis(name, service["command"][1:])
            listen = f"tcp:{self._ports['server']}:interface=127.0.0.1"
            server = self._start("server", PELOTON_SERVER__LISTEN=listen)
            callee = self._start("callee")
            await self._until(server, "Listening on")
            await self._until(callee, "Serving pelotontx.demo.callee:callee")
        except BaseException:
            await self._running.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    def client(self) -> Terminal:
        """What ``docker compose run client`` would start."""
        service = self._services["client"]
        assert service["tty"]
        assert service["stdin_open"]
        command = [ENTRYPOINT, *map(self._here, service["command"])]
        return Terminal(command, folder=self._folder, environ=self._environ(service))

    def is_healthy(self) -> bool:
        """What the image's HEALTHCHECK says of the server."""
        command = [
            word.replace("8080", str(self._ports["server"])) for word in docker.healthcheck()
        ]
        done = subprocess.run(command, env=_with_path(), capture_output=True, timeout=20)
        return done.returncode == 0

    async def _start_redis(self, name: str, options: Sequence[str]) -> None:
        server = RedisServer(self._reactor, redis_binary(), options=options)
        self.redises[name] = await self._running.enter_async_context(server)
        self._ports[name] = server.port

    def _start(self, name: str, **more: str) -> Program:
        service = self._services[name]
        program = Program(
            self._reactor,
            *map(self._here, service["command"]),
            folder=self._folder,
            environ=self._environ(service) | more,
            command=(ENTRYPOINT,),
        )
        self._running.push_async_callback(program.stop)
        program.child.start()
        return program

    async def _until(self, program: Program, text: str) -> None:
        def says() -> bool:
            assert program.child.pid is not None, program.output
            return text in program.output

        await eventually(self._reactor, says, timeout_s=30)

    def _environ(self, service: Mapping[str, Any]) -> dict[str, str]:
        settings: dict[str, str] = service.get("environment", {})
        return _with_path() | {name: self._here(value) for name, value in settings.items()}

    def _here(self, word: str) -> str:
        """A word of a command or a setting, for this machine instead of for a container."""
        for volume in self._services["server"]["volumes"]:
            source, target, _ = volume.split(":")
            word = word.replace(target, str(docker.FOLDER / source))
        return _ADDRESS.sub(lambda match: f"//127.0.0.1:{self._ports[match[1]]}", word)


class Terminal:
    """A program on a terminal of its own, until the end of a ``with``."""

    def __init__(self, command: Sequence[str], *, folder: Path, environ: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        termios.tcsetwinsize(slave, (24, 100))
        # This terminal does not say where its cursor is; prompt_toolkit would wait for that.
        quiet = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HOME": str(folder)}
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**os.environ, **environ, **quiet},
            start_new_session=True,
        )
        os.close(slave)
        self._shown = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(timeout=20)
        os.close(self._master)

    def type(self, line: str) -> None:
        """The line, and Enter."""
        os.write(self._master, f"{line}\r".encode())

    def shows(self, text: str) -> bool:
        """Whether the text has been on the screen, colours and runs of spaces aside."""
        return text in " ".join(self._text().split())

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        self._text()  # or it would wait for somebody to read
        return self._process.poll()

    def _text(self) -> str:
        try:
            while data := os.read(self._master, 65536):
                self._shown += data
        except OSError:  # nothing more now (EAGAIN), or for ever (EIO)
            pass
        return _ESCAPE.sub(b"", self._shown).decode(errors="replace")


def _with_path() -> dict[str, str]:
    """The environment that finds our programs, as the image's does."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}

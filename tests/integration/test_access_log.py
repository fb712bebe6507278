"""The access log of the whole server, while its file is moved away and until its end."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor

from pelotontx.client import Client
from tests.support.listening import ListeningServer, asked, connected
from tests.support.servers import eventually, free_port


def table(port: int, **options: str) -> str:
    keys = "".join(f'{name} = "{value}"\n' for name, value in options.items())
    return (
        f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
        f'[access_log]\npath = "access.log"\n{keys}'
    )


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest_twisted.ensureDeferred
async def test_each_answer_has_its_line(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "access.log"
    async with ListeningServer(reactor, table(port), folder=tmp_path):
        with connected(port) as connection:
            asked(connection, "/who?x=1")
            asked(connection, "/nowhere")
            connection.sendall(b"nonsense\r\n\r\n")
            while connection.recv(65536):
                pass
        client = Client(f"ws://127.0.0.1:{port}/ws", reactor=reactor)
        await client.connect().addTimeout(10, reactor)
        await client.close()
        await eventually(reactor, lambda: len(lines_of(log)) == 4)
    lines = lines_of(log)
    pattern = r'127\.0\.0\.1 - - \[[^\]]+\] "([^"]*)" (\d{3}) (\d+) "-" "([^"]*)" \d+\.\d{3}'
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    assert [match.groups()[:2] for match in found if match] == [
        ("GET /who?x=1 HTTP/1.1", "200"),
        ("GET /nowhere HTTP/1.1", "404"),
        ("-", "400"),
        ("GET /ws HTTP/1.1", "101"),
    ]


@pytest_twisted.ensureDeferred
async def test_what_is_answered_while_the_server_stops_is_written(tmp_path: Path) -> None:
    port = free_port()
    server = ListeningServer(reactor, table(port, format="json"), folder=tmp_path)
    async with server:
        with connected(port) as connection:
            for number in range(300):
                asked(connection, f"/who?{number}")
            # Most of these are still on their way to the file.
            server.child.signal(signal.SIGTERM)
            await server.ended()
    lines = [json.loads(line) for line in lines_of(tmp_path / "access.log")]
    assert [line["target"] for line in lines] == [f"/who?{number}" for number in range(300)]
    assert {(line["client"], line["status"]) for line in lines} == {("127.0.0.1", 200)}


@pytest_twisted.ensureDeferred
async def test_a_rotated_file_is_left_with_a_signal_and_without(tmp_path: Path) -> None:
    port = free_port()
    log, first, second = (tmp_path / name for name in ("access.log", "first", "second"))
    async with ListeningServer(reactor, table(port), folder=tmp_path) as server:
        with connected(port) as connection:
            asked(connection, "/who?1")
            await eventually(reactor, lambda: len(lines_of(log)) == 1)
            os.rename(log, first)
            server.child.signal(signal.SIGHUP)
            await eventually(reactor, log.exists)  # before anything is written
            asked(connection, "/who?2")
            await eventually(reactor, lambda: len(lines_of(log)) == 1)
            os.rename(log, second)
            asked(connection, "/who?3")
            await eventually(reactor, lambda: len(lines_of(log)) == 1)
    for number, path in enumerate((first, second, log), start=1):
        (line,) = lines_of(path)
        assert f"/who?{number} " in line


@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "access.log").mkdir()
    server = ListeningServer(reactor, table(free_port()), folder=tmp_path)
    assert await server.refuses_to_start() == (
        "peloton: access_log.path: access.log: cannot be opened: Is a directory"
    )


@pytest_twisted.ensureDeferred
async def test_standard_output_will_do(tmp_path: Path) -> None:
    port = free_port()
    toml = table(port).replace("access.log", "-")
    async with ListeningServer(reactor, toml, folder=tmp_path) as server:
        with connected(port) as connection:
            asked(connection, "/who")
        await eventually(reactor, lambda: '"GET /who HTTP/1.1" 200' in server.output)

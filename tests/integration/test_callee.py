"""A user's functions behind a real server: threads, types, and the end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from pelotontx.backend.callee import Callee
from pelotontx.errors import CallFailed
from tests.support.brokers import Peer, World
from tests.support.kinds import KINDS
from tests.support.programs import PelotonServer, Program
from tests.support.servers import RedisServer, eventually, redis_binary

FUNCTIONS = """
import threading
import time
from typing import Any

import msgspec

from pelotontx.backend.callee import Callee

callee = Callee()
gate = threading.Event()
waiting = []


class Item(msgspec.Struct):
    name: str
    quantity: int = 1


@callee.function("shop.total")
def total(items: list[Item]) -> dict[str, int]:
    return {item.name: item.quantity for item in items}


@callee.function("shop.add")
def add(a: int, b: int = 0) -> int:
    return a + b


@callee.function("wait")
def wait(args: Any) -> str:
    waiting.append(args)
    gate.wait(20)
    return threading.current_thread().name


@callee.function("open")
async def open_gate(expected: int) -> bool:
    if len(waiting) == expected:
        gate.set()
    return gate.is_set()


@callee.function("stuck")
def stuck(args: Any) -> None:
    print("stuck now", flush=True)
    time.sleep(1000)
"""


@pytest_twisted.async_yield_fixture
async def server(tmp_path: Path) -> AsyncIterator[PelotonServer]:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "peloton.toml").write_text(
        '[server]\ndrain_timeout = "1s"\n[rpc]\nmessage_rate = 0\n'
        '[[callee]]\nobject = "functions:callee"\nthreads = 3\n'
    )
    async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
        yield server


@pytest_twisted.ensureDeferred
async def test_functions_that_block_keep_neither_the_server_nor_coroutines_waiting(
    server: PelotonServer,
) -> None:
    client = await server.client()
    waiting = [client.call("wait", timeout_s=30) for _ in range(3)]
    assert (await server.get("/health"))[0] == 200
    while not await client.call("open", 3):
        assert not any(call.called for call in waiting)
    names = await gatherResults(waiting)
    assert set(names) == {"callee-1", "callee-2", "callee-3"}


@pytest_twisted.ensureDeferred
async def test_wrong_args_are_told_to_the_client(server: PelotonServer) -> None:
    client = await server.client()
    items = [{"name": "pear", "quantity": 3}, {"name": "apple"}]
    assert await client.call("shop.total", items) == {"pear": 3, "apple": 1}
    assert await client.call("shop.add", {"a": 1, "b": 2}) == 3
    assert await client.call("shop.add", [4]) == 4
    for uri, args, message in (
        ("shop.total", [{"name": "pear", "quantity": "3"}], "args[0].quantity: expected int, got"),
        ("shop.add", {"b": 2}, "args: object missing required field a"),
        ("shop.add", None, "args: object missing required field a"),
    ):
        with pytest.raises(CallFailed) as caught:
            await client.call(uri, args)
        assert caught.value.payload["code"] == 400
        assert caught.value.payload["message"].startswith(f"{uri}: {message}")
    assert "failed" not in server.output


@pytest_twisted.ensureDeferred
async def test_a_thread_that_never_ends_keeps_no_process_alive_and_is_named(
    server: PelotonServer,
) -> None:
    client = await server.client()
    client.call("stuck", timeout_s=30).addErrback(lambda _: None)
    await eventually(reactor, lambda: "stuck now" in server.output)
    assert str(await server.stop()) == "killed by SIGTERM"
    assert "Stopped while stuck ran" in server.output


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    return str(request.param)


@pytest_twisted.async_yield_fixture
async def world(kind: str) -> AsyncIterator[World]:
    world = World(reactor, kind)
    await world.start()
    yield world
    await world.stop()


@pytest_twisted.ensureDeferred
async def test_functions_of_both_kinds_are_served_on_every_broker(world: World) -> None:
    callee = Callee()
    callee.function("thread")(lambda args: args)
    callee.function("here", inline=True)(lambda args: args)
    node, peer = await world.node(), Peer()
    service = await world.callee(callee, threads=2)
    for n in range(18):
        node.call(peer, n, "thread" if n % 2 else "here", b"%d" % n)
    await eventually(reactor, lambda: len(peer.of("answered")) == 18)
    assert sorted(peer.of("answered")) == [(n, b"%d" % n) for n in range(18)]
    assert service.calls_run == 18


@pytest.mark.parametrize("kind", ["redis"])
@pytest_twisted.ensureDeferred
async def test_a_result_outlives_the_absence_of_its_broker(world: World) -> None:
    gate: Deferred[None] = Deferred()
    callee = Callee()

    @callee.function("u")
    async def function(args: Any) -> str:
        await gate
        return "kept"

    service = await world.callee(callee)
    node, peer = await world.node(), Peer()
    node.call(peer, 1, "u", timeout_s=20.0)
    await eventually(reactor, lambda: service.calls_running)
    assert world.server is not None
    await world.server.kill()
    await eventually(reactor, lambda: not node.broker.available)
    gate.callback(None)
    await world.server.start()
    await eventually(reactor, lambda: peer.of("answered"))
    assert peer.of("answered") == [(1, b'"kept"')]
    assert service.results_lost == 0


PELOTON = (sys.executable, "-m", "pelotontx")


@pytest_twisted.ensureDeferred
async def test_a_process_of_its_own_has_so_many_threads_as_its_option_says(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    async with RedisServer(reactor, redis_binary()) as redis:
        options = ("--broker", redis.url, "--threads", "2")
        arguments = ("callee", "functions:callee", *options)
        callee = Program(reactor, *arguments, folder=tmp_path, command=PELOTON)
        callee.child.start()
        try:
            async with PelotonServer(reactor, "--broker", redis.url, folder=tmp_path) as server:
                client = await server.client()
                waiting = [client.call("wait", timeout_s=30) for _ in range(2)]
                while not await client.call("open", 2, timeout_s=20):
                    pass
                assert set(await gatherResults(waiting)) == {"callee-1", "callee-2"}
        finally:
            await callee.stop()


@pytest_twisted.ensureDeferred
async def test_a_process_that_takes_no_calls_any_more_ends_with_1(tmp_path: Path) -> None:
    # A name that no broker can be asked for.
    (tmp_path / "functions.py").write_text(
        "from pelotontx.backend.callee import Callee\ncallee = Callee()\n"
        "callee.function('\\ud800', inline=True)(lambda args: args)\n"
    )
    async with RedisServer(reactor, redis_binary()) as redis:
        arguments = ("callee", "functions:callee", "--broker", redis.url)
        callee = Program(reactor, *arguments, folder=tmp_path, command=PELOTON)
        callee.child.start()
        assert str(await callee.ended()) == "exit status 1"
    assert "UnicodeEncodeError" in callee.output


@pytest_twisted.ensureDeferred
async def test_a_process_ends_its_stop_itself_when_its_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "peloton.toml").write_text(
        '[server]\ndrain_timeout = "1s"\n[[callee]]\nobject = "functions:callee"\nprocesses = 1\n'
    )
    async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
        client = await server.client()
        client.call("stuck", timeout_s=30).addErrback(lambda _: None)
        await eventually(reactor, lambda: "stuck now" in server.output, timeout_s=20)
        await server.stop()
    assert "functions:callee[0]: Stopped while stuck ran" in server.output

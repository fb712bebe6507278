"""Watched sockets on a real reactor, and the example programs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from pelotontx.flow import (
    Stream,
    later,
    on_acceptable,
    on_connectable,
    on_readable,
    on_writable,
    once_acceptable,
    once_connectable,
    once_readable,
    once_writable,
    timeout,
)
from tests.integration.conftest import LoggedErrors
from tests.support.programs import Program
from tests.support.servers import free_port

pytestmark = pytest.mark.reactors

ROOT = Path(__file__).parents[2]
LIMIT_S = 20


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        yield here, there


@contextmanager
def listener() -> Iterator[socket.socket]:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(5)
        listening.setblocking(False)
        yield listening


async def next_of(stream: Stream[bytes]) -> bytes:
    return await timeout(reactor, LIMIT_S, anext(stream))


@pytest_twisted.ensureDeferred
async def test_on_readable_calls_until_it_is_stopped() -> None:
    with pair() as (here, there):
        received: Stream[bytes] = Stream()
        watch = on_readable(reactor, here, lambda: received.offer(here.recv(2)))
        there.send(b"hello")
        assert [await next_of(received) for _ in range(3)] == [b"he", b"ll", b"o"]
        watch.stop()
        watch.stop()
        there.send(b"more")
        await once_readable(reactor, here)  # the reactor has seen it
        assert len(received) == 0


@pytest_twisted.ensureDeferred
async def test_an_end_of_the_peer_is_readable() -> None:
    with pair() as (here, there):
        received: Stream[bytes] = Stream()
        watch = on_readable(reactor, here, lambda: (watch.stop(), received.offer(here.recv(2))))
        there.close()
        assert await next_of(received) == b""


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_pipe_is_readable() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as file:
        received: Stream[bytes] = Stream()

        def read() -> None:
            piece = file.read(10)
            if not piece:
                watch.stop()
            received.offer(piece)

        watch = on_readable(reactor, file, read)
        os.write(writing, b"x")
        assert await next_of(received) == b"x"
        os.close(writing)
        assert await next_of(received) == b""


@pytest_twisted.ensureDeferred
async def test_one_socket_is_watched_for_both_at_once() -> None:
    with pair() as (here, there):
        told: Stream[bytes] = Stream()
        reading = on_readable(reactor, here, lambda: told.offer(here.recv(10)))
        writing = on_writable(reactor, here, lambda: (writing.stop(), told.offer(b"writable")))
        assert await next_of(told) == b"writable"
        there.send(b"x")
        assert await next_of(told) == b"x"
        reading.stop()


@pytest_twisted.ensureDeferred
async def test_a_coroutine_is_not_called_again_while_it_runs() -> None:
    with pair() as (here, there):
        received: Stream[bytes] = Stream()
        gate: Deferred[None] = Deferred()
        calls = []

        async def reads_slowly() -> None:
            calls.append(1)
            await gate
            await received.put(here.recv(10))

        watch = on_readable(reactor, here, reads_slowly)
        there.send(b"x")
        await once_readable(reactor, here)
        await later(reactor, 0)  # the reactor has had a turn with the descriptor ready
        assert calls == [1]
        gate.callback(None)
        assert await next_of(received) == b"x"
        there.send(b"y")
        assert await next_of(received) == b"y"
        watch.stop()


@pytest_twisted.ensureDeferred
async def test_an_error_is_logged_and_the_watch_goes_on(logged: LoggedErrors) -> None:
    with pair() as (here, there):
        received: Stream[bytes] = Stream()

        def fails_first() -> None:
            if not logged.flush(ZeroDivisionError):
                raise ZeroDivisionError
            received.offer(here.recv(10))

        watch = on_readable(reactor, here, fails_first)
        there.send(b"x")
        assert await next_of(received) == b"x"
        watch.stop()


@pytest_twisted.ensureDeferred
async def test_a_failed_coroutine_is_logged_and_stop_ends_its_rest(logged: LoggedErrors) -> None:
    with pair() as (here, there):
        failed: Deferred[None] = Deferred()

        async def fails() -> None:
            await later(reactor, 0)
            reactor.callLater(0, failed.callback, None)
            raise ZeroDivisionError

        watch = on_readable(reactor, here, fails)
        there.send(b"x")
        await timeout(reactor, LIMIT_S, failed)
        assert logged.flush(ZeroDivisionError)
        watch.stop()


@pytest_twisted.ensureDeferred
async def test_connections_are_acceptable_and_connectable() -> None:
    with listener() as listening:
        accepted: Stream[bytes] = Stream()
        watch = on_acceptable(
            reactor, listening, lambda: (listening.accept()[0].close(), accepted.offer(b"one"))
        )
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
            error: Deferred[OSError | None] = Deferred()
            on_connectable(reactor, client, error.callback)
            assert await timeout(reactor, LIMIT_S, error) is None
            assert await next_of(accepted) == b"one"
        watch.stop()


@pytest_twisted.ensureDeferred
async def test_once_each() -> None:
    with listener() as listening, socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(listening.getsockname())
        await timeout(reactor, LIMIT_S, once_connectable(reactor, client))
        await timeout(reactor, LIMIT_S, once_acceptable(reactor, listening))
        with listening.accept()[0] as accepted:
            await timeout(reactor, LIMIT_S, once_writable(reactor, accepted))
            accepted.send(b"x")
            await timeout(reactor, LIMIT_S, once_readable(reactor, client))
            assert client.recv(10) == b"x"


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_told_as_what_it_is() -> None:
    address = ("127.0.0.1", free_port())
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(address)
        with pytest.raises(ConnectionRefusedError):
            await timeout(reactor, LIMIT_S, once_connectable(reactor, client))
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(address)
        told: Deferred[OSError | None] = Deferred()
        on_connectable(reactor, client, told.callback)
        assert isinstance(await timeout(reactor, LIMIT_S, told), ConnectionRefusedError)


@pytest_twisted.ensureDeferred
async def test_cancelling_stops_the_watch() -> None:
    with pair() as (here, there):
        waiting = once_readable(reactor, here)
        connecting = ensureDeferred(once_connectable(reactor, here))
        waiting.cancel()
        connecting.cancel()
        for deferred in (waiting, connecting):
            with pytest.raises(CancelledError):
                await deferred
        here.close()
        there.setblocking(True)
        assert there.recv(1) == b""  # nothing of ours holds the socket open


@pytest_twisted.ensureDeferred
async def test_the_example_prints_the_sum_of_both_loads(tmp_path: Path) -> None:
    example = Program(
        reactor,
        str(ROOT / "examples" / "futures.py"),
        folder=tmp_path,
        command=(sys.executable,),
    )
    example.child.start()
    await example.ended()
    assert example.lines == ["hi", "3"]

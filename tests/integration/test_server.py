"""The whole server as a user starts, uses and stops it."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from pelotontx.client import Client, Event
from pelotontx.errors import CallExpired, CallFailed, Disconnected, RequestRefused
from tests.support.programs import BIN, PelotonServer, Program, children_of
from tests.support.servers import RedisServer, eventually, free_port, is_alive, redis_binary

ROOT = Path(__file__).parents[2]

DEMO_IN_A_PROCESS = """
[[callee]]
object = "pelotontx.demo.callee:callee"
processes = 1
"""


@pytest_twisted.async_yield_fixture
async def demo(tmp_path: Path) -> AsyncIterator[PelotonServer]:
    """A server without any configuration."""
    async with PelotonServer(reactor, folder=tmp_path) as server:
        yield server


class TestDemo:
    @pytest_twisted.ensureDeferred
    async def test_without_configuration_the_three_functions_answer(
        self, demo: PelotonServer
    ) -> None:
        client = await demo.client()
        assert await client.call("test.echo", "0012") == "0012"
        assert await client.call("test.reverse", "añb✓") == "✓bña"
        assert await client.call("test.delay", "20") == 20
        with pytest.raises(CallExpired):
            await client.call("test.delay", "5000", timeout_s=0.1)
        with pytest.raises(CallFailed):
            await client.call("test.reverse", {"not": "text"})
        with pytest.raises(CallExpired):
            await client.call("nobody.serves.this", timeout_s=0.1)

    @pytest_twisted.ensureDeferred
    async def test_events_reach_other_clients_and_oneself(self, demo: PelotonServer) -> None:
        one, two = await demo.client(), await demo.client()
        seen: list[tuple[str, Any]] = []
        await one.subscribe("chat", lambda event: seen.append(("one", event.args)))
        await two.subscribe("chat", lambda event: seen.append(("two", event.args)))
        await one.publish("chat", {"text": "hi"})
        await eventually(reactor, lambda: len(seen) == 2)
        assert sorted(seen) == [("one", {"text": "hi"}), ("two", {"text": "hi"})]

    @pytest_twisted.ensureDeferred
    async def test_patterns_are_refused_unless_allowed(self, demo: PelotonServer) -> None:
        client = await demo.client()
        with pytest.raises(RequestRefused) as caught:
            await client.subscribe("*", print, pattern=True)
        assert caught.value.code == 403

    @pytest_twisted.ensureDeferred
    async def test_every_default_path_is_served(self, demo: PelotonServer) -> None:
        await demo.client()
        status, body = await demo.get("/health")
        report = json.loads(body)
        assert (status, report["status"], report["broker"]["available"]) == (200, "ok", True)
        status, body = await demo.get("/metrics")
        assert status == 200
        assert b"peloton_websocket_connections 1.0" in body
        status, body = await demo.get("/peloton.js")
        assert (status, b"export" in body) == (200, True)
        status, body = await demo.get("/")
        assert (status, b"pelotontx" in body) == (200, True)
        assert (await demo.get("/ws"))[0] == 400
        assert (await demo.get("/nothing"))[0] == 404


class TestConfiguration:
    @pytest_twisted.ensureDeferred
    async def test_the_users_own_application_and_functions_are_served(self) -> None:
        folder = ROOT / "examples" / "shop"
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=folder) as server:
            assert await server.get("/") == (200, b"The shop is open.\n")
            assert await server.get("/price/pear") == (200, b'{"pear":45}')
            client = await server.client()
            assert await client.call("shop.total", {"apple": 2, "pear": 1}) == 105

    @pytest_twisted.ensureDeferred
    async def test_what_make_run_starts_serves_page_and_functions(self, tmp_path: Path) -> None:
        config = ROOT / "examples" / "demo" / "peloton.toml"
        async with PelotonServer(reactor, "--config", str(config), folder=tmp_path) as server:
            assert (await server.get("/"))[0] == 200
            client = await server.client()
            assert await client.call("test.reverse", "hello") == "olleh"

    @pytest_twisted.ensureDeferred
    async def test_callees_run_in_processes_of_their_own(self, tmp_path: Path) -> None:
        (tmp_path / "peloton.toml").write_text(DEMO_IN_A_PROCESS)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            assert server.child.pid is not None
            client = await server.client()
            assert await client.call("test.echo", [1, None]) == [1, None]
            assert len(children_of(server.child.pid)) == 2  # Valkey and the callee
            _, body = await server.get("/health")
            (process,) = json.loads(body)["callee[0]"]["processes"]
            assert process["state"] == "running"

    @pytest_twisted.ensureDeferred
    async def test_the_environment_and_options_override_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_text('[broker]\nurl = "redis://x:1"\n[rpc]\npatterns = false')
        async with PelotonServer(
            reactor,
            *("--config", "p.toml", "--broker", "memory:"),
            folder=tmp_path,
            environ={"PELOTON_RPC__PATTERNS": "true"},
        ) as server:
            client = await server.client()
            seen: list[Event] = []
            await client.subscribe("a*", seen.append, pattern=True)
            await client.publish("abc", 1)
            await eventually(reactor, lambda: seen)
            assert (seen[0].channel, seen[0].pattern) == ("abc", "a*")

    @pytest.mark.parametrize("name", ["peloton", "epoll", "asyncio"])
    @pytest_twisted.ensureDeferred
    async def test_it_runs_on_other_reactors(self, tmp_path: Path, name: str) -> None:
        command = (str(BIN / "twistd"), "--nodaemon", "--pidfile=", "--reactor", name)
        async with PelotonServer(reactor, folder=tmp_path, command=command) as server:
            client = await server.client()
            assert await client.call("test.echo", 1) == 1
            seen: list[Event] = []
            await client.subscribe("c", seen.append)
            await client.publish("c", 1)
            await eventually(reactor, lambda: seen)
            assert (await server.get("/"))[0] == 200

    @pytest_twisted.ensureDeferred
    async def test_twist_runs_it_too(self, tmp_path: Path) -> None:
        async with PelotonServer(reactor, folder=tmp_path, command=(str(BIN / "twist"),)) as server:
            assert await (await server.client()).call("test.echo", 1) == 1

    @pytest_twisted.ensureDeferred
    async def test_the_tac_deployment_runs(self, tmp_path: Path) -> None:
        port = free_port()
        server = PelotonServer(
            reactor,
            folder=tmp_path,
            port=port,
            environ={"LISTEN": f"tcp:{port}:interface=127.0.0.1"},
        )
        program = Program(
            reactor,
            *("--python", str(ROOT / "tac" / "minimal.tac")),
            folder=tmp_path,
            environ={"LISTEN": f"tcp:{port}:interface=127.0.0.1"},
        )
        server.child = program.child
        server.lines = program.lines
        async with server:
            assert (await server.get("/health"))[0] == 200

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[server", "peloton.toml"),
            ("[serv]", "server"),
            ('[websocket]\nping_intervall = "3s"', "ping_interval"),
            ("[rpc]\npatterns = 1", "rpc.patterns"),
            ('[http]\nhead_timeout = "soon"', "http.head_timeout"),
            ('[broker]\nurl = "redis//x"', "broker.url"),
            ('[web]\napp = "no_such_module:app"', "no_such_module"),
            ('[web]\napp = "pelotontx.demo.callee:callee"', "App"),
            ('[[callee]]\nobject = "pelotontx.demo.callee:calle"', "callee"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_bad_configuration_is_one_line_and_status_1(
        self, tmp_path: Path, text: str, told: str
    ) -> None:
        (tmp_path / "peloton.toml").write_text(text)
        program = Program(reactor, "peloton", "--config", "peloton.toml", folder=tmp_path)
        program.child.start()
        assert (await program.ended()).code == 1
        (line,) = program.lines
        assert line.startswith("peloton: ")
        assert told in line

    @pytest.mark.parametrize("argument", ["tcp:notaport", "bar:3"])
    @pytest_twisted.ensureDeferred
    async def test_a_bad_endpoint_is_told_without_traceback(
        self, tmp_path: Path, argument: str
    ) -> None:
        program = Program(reactor, "peloton", "--listen", argument, folder=tmp_path)
        program.child.start()
        assert (await program.ended()).code == 1
        assert argument in program.output
        assert "Traceback" not in program.output

    @pytest_twisted.ensureDeferred
    async def test_a_port_that_is_taken_is_told_without_traceback(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            server = PelotonServer(reactor, folder=tmp_path, port=port)
            server.child.start()
            assert (await server.ended()).code == 1
        assert "already in use" in server.output
        assert "Traceback" not in server.output

    @pytest_twisted.ensureDeferred
    async def test_a_tac_server_that_cannot_listen_says_so_and_ends(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            program = Program(
                reactor,
                *("--python", str(ROOT / "tac" / "minimal.tac")),
                folder=tmp_path,
                environ={"LISTEN": f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"},
            )
            program.child.start()
            await program.ended()
        assert "already in use" in program.output

    @pytest_twisted.ensureDeferred
    async def test_lines_of_callee_processes_keep_their_level(self, tmp_path: Path) -> None:
        (tmp_path / "loud.py").write_text(
            "from pelotontx.backend.callee import Callee\n"
            "callee = Callee()\n"
            "@callee.function('f')\n"
            "def f(args):\n"
            "    raise ValueError('no good')\n"
        )
        (tmp_path / "peloton.toml").write_text(
            '[log]\nlevel = "warn"\n[[callee]]\nobject = "loud:callee"\nprocesses = 1\n'
        )
        server = PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path)
        server.child.start()
        try:
            client = Client(server.websocket_url, reactor=reactor)
            await client.connect().addTimeout(20, reactor)
            with pytest.raises(CallFailed, match="no good"):
                await client.call("f")
            await eventually(reactor, lambda: "builtins.ValueError: no good" in server.output)
            assert "Listening" not in server.output
            await client.close(abort=True)
        finally:
            await server.stop()


class TestBrokerDown:
    @pytest_twisted.ensureDeferred
    async def test_a_broker_that_is_down_at_start_is_nack_and_503_until_it_comes(
        self, tmp_path: Path
    ) -> None:
        redis = RedisServer(reactor, redis_binary())
        (tmp_path / "peloton.toml").write_text(
            f'[broker]\nurl = "{redis.url}"\n{DEMO_IN_A_PROCESS}'
        )
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            status, body = await server.get("/health")
            assert (status, json.loads(body)["status"]) == (503, "unavailable")
            client = await server.client()
            with pytest.raises(RequestRefused) as caught:
                await client.call("test.echo", 1)
            assert caught.value.code == 500
            with pytest.raises(RequestRefused):
                await client.publish("c", 1)
            with pytest.raises(RequestRefused):
                await client.subscribe("c", print)
            async with redis:
                healed: list[int] = []

                async def look() -> None:
                    healed.append((await server.get("/health"))[0])

                while 200 not in healed:
                    await look()
                assert await client.call("test.echo", 1, timeout_s=20) == 1
                await server.stop()


class TestStop:
    @pytest_twisted.ensureDeferred
    async def test_sigterm_while_it_starts_ends_it_quietly(self, tmp_path: Path) -> None:
        broker = f"redis://127.0.0.1:{free_port()}"
        server = PelotonServer(reactor, "--broker", broker, folder=tmp_path)
        server.child.start()
        await eventually(reactor, lambda: "no connection" in server.output, timeout_s=20)
        server.child.signal(signal.SIGTERM)
        await server.ended()
        assert "Traceback" not in server.output

    @pytest_twisted.ensureDeferred
    async def test_sigterm_lets_calls_in_flight_end_and_closes_with_1001(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "peloton.toml").write_text(DEMO_IN_A_PROCESS)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            causes: list[str] = []
            busy = await server.client()
            idle = await server.client(
                on_state=lambda state, cause=None: causes.append(str(cause or ""))
            )
            assert await busy.call("test.echo", 1) == 1
            assert server.child.pid is not None
            family = [server.child.pid, *children_of(server.child.pid)]
            calls = gatherResults(
                [busy.call("test.delay", str(ms)) for ms in (300, 400, 500)], consumeErrors=True
            )
            await busy.publish("c", 1)  # the calls before it are with the server now
            server.child.signal(signal.SIGTERM)
            assert await calls == [300, 400, 500]
            assert (await server.ended()).signal_number == signal.SIGTERM  # twistd's way to end
            assert any("1001" in cause for cause in causes), causes
            assert not any(is_alive(pid) for pid in family)
            await idle.close(abort=True)

    @pytest_twisted.ensureDeferred
    async def test_a_call_that_outlasts_the_stop_gets_an_answer(self, tmp_path: Path) -> None:
        (tmp_path / "peloton.toml").write_text(
            DEMO_IN_A_PROCESS + '[server]\ndrain_timeout = "300ms"'
        )
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            client = await server.client()
            await client.call("test.echo", 1)
            call = client.call("test.delay", "60000")
            await client.publish("c", 1)
            server.child.signal(signal.SIGTERM)
            with pytest.raises(CallFailed, match="stopping"):
                await call
            assert (await server.ended()).signal_number == signal.SIGTERM  # twistd's way to end

    @pytest_twisted.ensureDeferred
    async def test_a_second_sigterm_stops_at_once_and_leaves_no_process(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "peloton.toml").write_text(DEMO_IN_A_PROCESS)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            client = await server.client()
            await client.call("test.echo", 1)
            call = client.call("test.delay", "60000")
            await client.publish("c", 1)
            assert server.child.pid is not None
            family = [server.child.pid, *children_of(server.child.pid)]
            server.child.signal(signal.SIGTERM)
            await eventually(reactor, lambda: "SIGTERM" in server.output)
            server.child.signal(signal.SIGTERM)
            with pytest.raises((Disconnected, CallFailed)):
                await call
            assert (await server.ended(timeout_s=5)).code == 128 + signal.SIGTERM
            await eventually(reactor, lambda: not any(is_alive(pid) for pid in family))

    @pytest_twisted.ensureDeferred
    async def test_kill_9_leaves_no_process(self, tmp_path: Path) -> None:
        (tmp_path / "peloton.toml").write_text(DEMO_IN_A_PROCESS)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            await (await server.client()).call("test.echo", 1)
            assert server.child.pid is not None
            family = [server.child.pid, *children_of(server.child.pid)]
            assert len(family) == 3
            server.child.signal(signal.SIGKILL)
            await eventually(reactor, lambda: not any(is_alive(pid) for pid in family))


class TestSessions:
    @pytest_twisted.ensureDeferred
    async def test_connections_past_the_limit_are_refused_and_room_is_used_again(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "p.toml").write_text("[server]\nconnections_limit = 3")
        async with PelotonServer(reactor, "--config", "p.toml", folder=tmp_path) as server:
            clients = [await server.client() for _ in range(3)]
            refused = Client(server.websocket_url, reactor=reactor)
            with pytest.raises(Disconnected):
                await refused.connect(retry=False)
            await clients[0].close()
            await server.client()

    @pytest_twisted.ensureDeferred
    async def test_a_thousand_sessions_keep_the_redis_connections_constant(
        self, tmp_path: Path
    ) -> None:
        async with RedisServer(reactor, redis_binary()) as redis:
            (tmp_path / "peloton.toml").write_text(
                f'[broker]\nurl = "{redis.url}"\n'
                '[[callee]]\nobject = "pelotontx.demo.callee:callee"\nconcurrency = 64\n'
            )

            async def connections() -> int:
                listing: bytes = await redis.command("CLIENT", "LIST")
                return listing.count(b"name=pelotontx-")

            async with PelotonServer(
                reactor, "--config", "peloton.toml", folder=tmp_path
            ) as server:
                first = await server.client()
                assert await first.call("test.echo", 0) == 0
                before = await connections()
                clients = []
                for _ in range(20):
                    clients += await gatherResults(
                        [Deferred.fromCoroutine(server.client()) for _ in range(50)]
                    )
                answers = await gatherResults(
                    [client.call("test.echo", n) for n, client in enumerate(clients)]
                )
                assert answers == list(range(1000))
                for client in clients[:200]:
                    await client.subscribe("c", lambda event: None)
                assert await connections() == before == 4
                _, body = await server.get("/metrics")
                assert b"peloton_juggler_sessions 1001.0" in body

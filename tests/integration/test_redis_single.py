"""The client of one Redis: TLS, UNIX sockets, logins, and what the log says of mistakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.errors import BrokerUnavailable, ConfigError
from pelotontx.net.redis.client import redis_client
from tests.support.certificates import Authority
from tests.support.redis_clients import ask, ask_on, log_texts, opened
from tests.support.servers import RedisServer, eventually, free_port, redis_binary


async def assert_refused(url: str, reason: str, **options: float) -> None:
    """No connection comes about, the log says why, and holds no secret."""
    with log_texts() as texts:
        async with opened(reactor, url, until_up=False, **options) as client:
            await eventually(reactor, lambda: any(reason in text for text in texts))
            assert not client.available
            with pytest.raises(BrokerUnavailable):
                await ask(client, "k", "GET", "k")
    assert not any("secret" in text for text in texts)


class TestTLS:
    @pytest_twisted.async_yield_fixture
    async def tls(self, tmp_path: Path) -> AsyncIterator[tuple[Authority, int]]:
        """An authority, and the port of a server whose certificate is for `localhost`."""
        authority = Authority(tmp_path)
        async for port in self.serve(authority, "no"):
            yield authority, port

    async def serve(self, authority: Authority, clients: str) -> AsyncIterator[int]:
        cert, key = authority.issue("server", "localhost")
        port = free_port()
        options = [
            *("--tls-port", str(port), "--tls-auth-clients", clients),
            *("--tls-cert-file", str(cert), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(authority.path)),
        ]
        async with RedisServer(reactor, redis_binary(), options=options):
            yield port

    @pytest_twisted.ensureDeferred
    async def test_a_server_of_the_authority_is_accepted(self, tls: tuple[Authority, int]) -> None:
        authority, port = tls
        async with opened(reactor, f"rediss://localhost:{port}?ca={authority.path}") as client:
            value = b"x" * 1_000_000
            await ask(client, "k", "SET", "k", value)
            assert await ask(client, "k", "GET", "k") == value

    @pytest_twisted.ensureDeferred
    async def test_a_server_of_another_authority_is_refused(
        self, tls: tuple[Authority, int], tmp_path: Path
    ) -> None:
        _, port = tls
        for query in (f"?ca={Authority(tmp_path, 'other').path}", ""):
            await assert_refused(
                f"rediss://:secret@localhost:{port}{query}", "certificate verify failed"
            )

    @pytest_twisted.ensureDeferred
    async def test_a_certificate_for_another_host_is_refused(
        self, tls: tuple[Authority, int]
    ) -> None:
        authority, port = tls
        await assert_refused(
            f"rediss://127.0.0.1:{port}?ca={authority.path}", "its certificate is for another host"
        )

    @pytest_twisted.ensureDeferred
    async def test_a_server_without_tls_is_refused(self, tls: tuple[Authority, int]) -> None:
        authority, _ = tls
        async with RedisServer(reactor, redis_binary()) as server:
            url = f"rediss://localhost:{server.port}?ca={authority.path}"
            await assert_refused(url, "no answer while logging in", connect_timeout_s=0.2)

    @pytest_twisted.ensureDeferred
    async def test_our_own_certificate_is_shown(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        cert, key = authority.issue("client", "client.example")
        async for port in self.serve(authority, "yes"):
            url = f"rediss://localhost:{port}?ca={authority.path}"
            async with opened(reactor, f"{url}&cert={cert}&key={key}") as client:
                assert await ask(client, "k", "SET", "k", "v") == b"OK"
            await assert_refused(url, "certificate required")

    def test_files_that_cannot_be_used_are_named(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        cert, _ = authority.issue("one", "x")
        _, key = authority.issue("two", "x")
        (tmp_path / "empty").touch()
        for query, reason in (
            (f"ca={tmp_path}/none", f"ca: {tmp_path}/none: No such file or directory"),
            (f"ca={tmp_path}/empty", f"ca: {tmp_path}/empty: no PEM certificate in it"),
            (f"cert={cert}&key={tmp_path}/empty", "key: not the private key of cert"),
            (f"cert={cert}&key={key}", "key: not the private key of cert"),
        ):
            with pytest.raises(ConfigError) as caught:
                redis_client(reactor, f"rediss://:secret@h?{query}")
            assert caught.value.reason == reason


class TestLogin:
    @pytest_twisted.async_yield_fixture
    async def server(self) -> AsyncIterator[RedisServer]:
        options = ["--requirepass", "secret", "--user", "me", "on", ">se:cret/2", "~*", "+@all"]
        async with RedisServer(reactor, redis_binary(), options=options) as server:
            yield server

    @pytest_twisted.ensureDeferred
    async def test_passwords_and_users_on_tcp_and_unix_sockets(self, server: RedisServer) -> None:
        for login in (":secret", "default:secret", "me:se%3Acret%2F2"):
            for url in (
                f"redis://{login}@127.0.0.1:{server.port}/3",
                f"unix://{login}@{server.socket_path}?db=3",
            ):
                async with opened(reactor, url) as client:
                    await ask(client, "k", "SET", "k", login)
                    info = await ask(client, "k", "CLIENT", "INFO")
                    assert b" db=3 " in info

    @pytest_twisted.ensureDeferred
    async def test_a_wrong_login_is_told_of(self, server: RedisServer) -> None:
        host = f"127.0.0.1:{server.port}"
        await assert_refused(f"redis://:notsecret@{host}", "WRONGPASS")
        await assert_refused(f"redis://you:secret@{host}", "WRONGPASS")
        await assert_refused(f"redis://{host}", "NOAUTH")
        await assert_refused(f"redis://:secret@{host}/99", "DB index is out of range")

    @pytest_twisted.ensureDeferred
    async def test_a_password_where_none_is_wanted_is_told_of(self) -> None:
        async with RedisServer(reactor, redis_binary()) as server:
            url = f"redis://:secret@127.0.0.1:{server.port}"
            await assert_refused(url, "without any password configured")


class TestRoles:
    @pytest_twisted.ensureDeferred
    async def test_a_server_that_becomes_a_replica_is_left_and_tried_again(self) -> None:
        async with (
            RedisServer(reactor, redis_binary()) as server,
            RedisServer(reactor, redis_binary()) as other,
            opened(reactor, server.url) as client,
        ):
            await server.command("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(BrokerUnavailable, match="READONLY"):
                await ask(client, "k", "SET", "k", "v")
            assert not client.available
            await server.command("REPLICAOF", "NO", "ONE")
            await ask_on(reactor, client, "k", "SET", "k", "v")

    @pytest_twisted.ensureDeferred
    async def test_a_server_that_loads_its_data_is_waited_for(self) -> None:
        options = [
            *("--enable-debug-command", "yes", "--key-load-delay", "500"),
            *("--loading-process-events-interval-bytes", "1024"),
        ]
        async with RedisServer(reactor, redis_binary(), options=options) as server:
            await server.command("DEBUG", "POPULATE", 2000)
            await server.command("SAVE")
            with log_texts() as texts:
                async with opened(reactor, server.url) as client:
                    await server.kill()
                    starting: Deferred[None] = Deferred.fromCoroutine(server.start())
                    await eventually(reactor, lambda: any("LOADING" in text for text in texts))
                    assert not client.available
                    await starting
                    await ask_on(reactor, client, "k", "SET", "k", "v")

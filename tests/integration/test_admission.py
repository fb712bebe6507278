"""Limits of connections against the real server: of one address, of new ones, of the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS

from tests.support.conversation import certificate
from tests.support.programs import BIN
from tests.support.raw_websocket import RawWebSocket, WatchedServer
from tests.support.servers import eventually, free_port
from tests.support.websocket_peer import CLOSE, frame

CONFIG = '[broker]\nurl = "memory:"\n[http]\nidle_timeout = "1h"\n[server]\n'
STRANGERS = 'trusted = ["127.0.0.1"]\n'
ONE, TWO = "127.0.0.2", "127.0.0.3"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def server_with(folder: Path, lines: str) -> WatchedServer:
    (folder / "peloton.toml").write_text(CONFIG + lines)
    return WatchedServer(reactor, "--config", "peloton.toml", folder=folder)


async def is_served(peer: RawWebSocket) -> bool:
    """Whether the server answers, or has cut the connection off."""
    if not peer.is_over:
        peer.say(GET)
    await eventually(reactor, lambda: peer.head or peer.is_over)
    return bool(peer.head)


@pytest_twisted.ensureDeferred
async def test_an_address_has_a_limit_whatever_its_connections_speak(tmp_path: Path) -> None:
    lines = STRANGERS + "address_connections_limit = 4\naddress_handshake_rate = 0"
    async with server_with(tmp_path, lines) as server:
        sockets = [await server.open_raw(address=ONE) for _ in range(2)]
        for _ in range(2):
            assert await is_served(server.connect_raw(address=ONE))
        assert not await is_served(server.connect_raw(address=ONE))
        assert await is_served(server.connect_raw(address=TWO))
        assert await is_served(server.connect_raw())
        assert await server.metric('connections_refused_total{limit="address"}') == 1
        sockets[0].say(frame(CLOSE))
        await sockets[0].ends()
        await server.until_metric("websocket_connections", 1)
        assert await is_served(server.connect_raw(address=ONE))
        assert not await is_served(server.connect_raw(address=ONE))


@pytest_twisted.ensureDeferred
async def test_new_connections_of_an_address_have_a_rate(tmp_path: Path) -> None:
    lines = STRANGERS + "address_handshake_rate = 5"
    async with server_with(tmp_path, lines) as server:
        served = [await is_served(server.connect_raw(address=ONE)) for _ in range(40)]
        assert served[:5] == [True] * 5
        assert await server.metric('connections_refused_total{limit="rate"}') == served.count(False)
        assert await is_served(server.connect_raw(address=TWO))
        for _ in range(40):
            assert await is_served(server.connect_raw())


@pytest_twisted.ensureDeferred
async def test_loopback_has_no_limits_of_its_own(tmp_path: Path) -> None:
    async with server_with(tmp_path, "") as server:
        for peer in [server.connect_raw(address=ONE) for _ in range(150)]:
            assert await is_served(peer)


@pytest_twisted.ensureDeferred
async def test_past_the_process_limit_connections_are_cut_off_under_tls_too(
    tmp_path: Path,
) -> None:
    pem, port = certificate(tmp_path), free_port()
    tls = f"ssl:{port}:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    (tmp_path / "peloton.toml").write_text(CONFIG + "connections_limit = 2")
    server = WatchedServer(reactor, *("--config", "peloton.toml", "--listen", tls), folder=tmp_path)
    async with server:
        await eventually(reactor, lambda: server.output.count("Listening on") == 2)
        peers = [server.connect_raw() for _ in range(2)]
        for peer in peers:
            assert await is_served(peer)
        for to in (server.port, port, port):
            stranger = server.connect_raw(port=to)
            await stranger.ends()
        peers.pop().transport.loseConnection()
        for _ in range(100):
            if await is_served(server.connect_raw()):
                break
        else:
            pytest.fail("room is not used again")
        assert "Traceback" not in server.output


@pytest_twisted.ensureDeferred
async def test_tls_connections_count_until_they_end(tmp_path: Path) -> None:
    pem, port = certificate(tmp_path), free_port()
    listen = f"ssl:{port}:privateKey={pem}:certKey={pem}:interface=127.0.0.1"
    lines = STRANGERS + "address_connections_limit = 1\naddress_handshake_rate = 0"
    (tmp_path / "peloton.toml").write_text(CONFIG + lines)
    trust = optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(pem.read_bytes()))
    address = TCP4ClientEndpoint(reactor, "127.0.0.1", port, bindAddress=(ONE, 0))
    factory = Factory.forProtocol(RawWebSocket)
    factory.noisy = False
    server = WatchedServer(
        reactor, *("--config", "peloton.toml", "--listen", listen), folder=tmp_path
    )
    async with server:
        await eventually(reactor, lambda: server.output.count("Listening on") == 2)
        for _ in range(3):
            peer = await wrapClientTLS(trust, address).connect(factory)
            assert await is_served(peer)
            stranger = server.connect_raw(port=port, address=ONE)
            await stranger.ends()
            peer.transport.loseConnection()
            await peer.ends()
            await server.until_metric("http_connections", 1)  # who asks


@pytest_twisted.ensureDeferred
async def test_a_low_limit_of_open_files_is_said_and_kept_to(tmp_path: Path) -> None:
    (tmp_path / "peloton.toml").write_text(CONFIG)
    server = WatchedServer(
        reactor,
        *("--config", "peloton.toml"),
        folder=tmp_path,
        command=("prlimit", "--nofile=260:260", str(BIN / "twistd"), "--nodaemon", "--pidfile="),
    )
    async with server:
        assert "server.connections_limit is 4 instead of 12000" in server.output
        for _ in range(4):
            assert await is_served(server.connect_raw())
        await server.connect_raw().ends()

"""What docs/operations.md shows of listeners, proxies, the access log, units and Redis's rights."""

from __future__ import annotations

import configparser
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory

from pelotontx.client import Client
from pelotontx.net.http.client import Answer, fetch
from pelotontx.net.tcp import connect
from tests.support.certificates import Authority
from tests.support.conversation import Conversation
from tests.support.documents import DOCS, blocks
from tests.support.listening import ListeningServer, asked, connected, secured, shown_name
from tests.support.programs import PelotonServer, Program
from tests.support.servers import (
    RedisServer,
    eventually,
    free_port,
    redis_binary,
    system_binary,
)

EXAMPLES = DOCS.parent / "examples"
LISTENERS, PROXIES, HOSTS, ACCESS_LOG = blocks("operations.md", "toml")
LINE = (
    r"\S+ - - \[\d\d/\w{3}/\d{4}(:\d\d){3} [+-]\d{4}\] "
    r'"GET \S+ HTTP/1.1" 200 \d+ "-" "\S+" \d+\.\d{3}'
)


class Documented:
    """A server with all that the document configures, on other ports and in another folder."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.authority.issue("shop", "localhost", "127.0.0.1")
        self.authority.issue("other", "*.other.example")
        self.public, self.plain, self.operations = free_port(), free_port(), free_port()
        self.socket = folder / "shop.sock"
        self.log = folder / "access.log"
        toml = LISTENERS + PROXIES + ACCESS_LOG
        for shown, here in (
            ("tcp:443", f"tcp:{self.public}:interface=127.0.0.1"),
            ("tcp:80", f"tcp:{self.plain}:interface=127.0.0.1"),
            ("tcp:9090", f"tcp:{self.operations}"),
            ("/etc/peloton", str(folder)),
            ("/run/peloton", str(folder)),
            ("/var/log/peloton", str(folder)),
        ):
            assert shown in toml
            toml = toml.replace(shown, here)
        self.server = ListeningServer(reactor, toml, folder=folder)

    async def lines(self, count: int) -> list[str]:
        """The access log, when it has so many lines."""
        await eventually(reactor, lambda: self.log.read_text().count("\n") >= count)
        return self.log.read_text().splitlines()


@pytest_twisted.async_yield_fixture
async def documented(tmp_path: Path) -> AsyncIterator[Documented]:
    documented = Documented(tmp_path)
    async with documented.server:
        yield documented


@pytest_twisted.ensureDeferred
async def test_the_public_listener_has_certificates_and_no_operations(
    documented: Documented,
) -> None:
    for name, shown in (("localhost", "shop"), ("www.other.example", "other")):
        plain = connected(documented.public)
        with secured(plain, documented.authority.path, name=name) as connection:
            assert shown_name(connection) == shown
            assert asked(connection) == "127.0.0.1 https"
            assert "404" in asked(connection, "/metrics")


@pytest_twisted.ensureDeferred
async def test_who_comes_without_tls_is_sent_there(documented: Documented) -> None:
    answer = await fetch(reactor, "GET", f"http://127.0.0.1:{documented.plain}/who?a=b")
    assert answer.status == 308
    (location,) = answer.headers.getRawHeaders("location") or []
    assert location == f"https://127.0.0.1:{documented.public}/who?a=b"


@pytest_twisted.ensureDeferred
async def test_operations_have_a_listener_of_their_own(documented: Documented) -> None:
    base = f"http://127.0.0.1:{documented.operations}"
    assert (await fetch(reactor, "GET", f"{base}/health")).status == 200
    assert (await fetch(reactor, "GET", f"{base}/who")).status == 404
    metrics = (await fetch(reactor, "GET", f"{base}/metrics")).body.decode()
    assert 'peloton_certificate_expiry_seconds{certificate="' in metrics


@pytest_twisted.ensureDeferred
async def test_a_proxy_is_believed_and_the_log_says_what_is_shown(documented: Documented) -> None:
    client = await connect(reactor, f"unix:{documented.socket}", Factory.forProtocol(Conversation))
    assert isinstance(client, Conversation)
    client.say(
        b"GET /who?secret=1 HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nUser-Agent: curl/8\r\n"
        b"X-Forwarded-For: 192.0.2.1, 203.0.113.7, 10.0.0.3\r\nX-Forwarded-Proto: https\r\n\r\n"
    )
    assert (await client.until(None)).endswith(b"203.0.113.7 https")
    (line,) = await documented.lines(1)
    assert line.startswith("203.0.113.7 - - [")
    assert '"GET /who HTTP/1.1"' in line
    (shown,) = re.findall(r"^    (203\..+)$", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert re.fullmatch(LINE, line), line
    assert re.fullmatch(LINE, shown)


@pytest_twisted.ensureDeferred
async def test_hosts_of_others_are_turned_away(tmp_path: Path) -> None:
    port = free_port()
    listen = f'listen = ["tcp:{port}:interface=127.0.0.1"]\n'
    async with ListeningServer(reactor, HOSTS + listen, folder=tmp_path):
        for host, path, status in (
            ("shop.example", "/who", 200),
            ("Www.Shop.Example:8080", "/who", 200),
            ("evil.example", "/who", 421),
            (f"127.0.0.1:{port}", "/who", 421),
            (f"127.0.0.1:{port}", "/metrics", 421),
            (f"127.0.0.1:{port}", "/health", 200),
        ):
            with connected(port) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert connection.recv(65536).startswith(f"HTTP/1.1 {status} ".encode()), host


def test_the_units_fit_to_each_other() -> None:
    units = []
    for text in blocks("operations.md", "ini"):
        unit = configparser.ConfigParser()
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        units.append(unit)
    socket, service = units
    assert service["Service"]["Type"] == "notify"
    assert service["Unit"]["Requires"] == "peloton.socket"
    name = socket["Socket"]["FileDescriptorName"]
    assert f'`endpoint = "systemd:{name}"`' in (DOCS / "operations.md").read_text()


@pytest_twisted.ensureDeferred
async def test_the_rights_are_enough_for_sessions(tmp_path: Path) -> None:
    rights = re.search(
        r"ACL SETUSER peloton on >password (.+juggler.+)", (DOCS / "operations.md").read_text()
    )
    assert rights is not None
    async with RedisServer(reactor, redis_binary()) as redis:
        words = ("ACL", "SETUSER", "peloton", "on", ">password", *rights[1].split())
        assert await redis.command(*words) == b"OK"
        server = PelotonServer(
            reactor,
            *("--config", str(EXAMPLES / "login" / "peloton.toml")),
            folder=tmp_path,
            environ={
                "PELOTON_BROKER__URL": redis.url.replace("://", "://peloton:password@"),
                "PELOTON_SESSION__SECRET": "of-this-test-and-used-nowhere-else",
                "PYTHONPATH": str(EXAMPLES / "login"),
            },
        )
        async with server:
            await log_in_and_out(server.url)
        assert await redis.command("ACL", "LOG") == []


async def log_in_and_out(url: str) -> None:
    cookie = ""

    async def ask(method: str, path: str, **form: str) -> Answer:
        nonlocal cookie
        options = {"data": form} if form else {}
        answer = await fetch(reactor, method, url + path, headers={"Cookie": cookie}, **options)
        for line in answer.headers.getRawHeaders("set-cookie") or []:
            cookie = line.partition(";")[0]
        return answer

    def token(page: Answer) -> str:
        found = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
        assert found is not None, page
        return found[1].decode()

    page = await ask("GET", "/login")
    form = {"user": "bob", "password": "secret", "csrf_token": token(page)}
    assert (await ask("POST", "/login", **form)).status == 303
    page = await ask("GET", "/")
    assert b"Welcome, bob" in page.body
    assert (await ask("POST", "/logout", csrf_token=token(page))).status == 303
    assert (await ask("GET", "/")).status == 303


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {map}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            {location}
        }}
    }}
}}
"""


@pytest_twisted.ensureDeferred
async def test_nginx_passes_on_what_is_asked_and_who_asks(
    documented: Documented, tmp_path: Path
) -> None:
    text = (DOCS / "operations.md").read_text()
    (lines,) = re.findall(r"^(    map .+\n\n(?:    proxy_.+\n)+)", text, re.MULTILINE)
    first, _, location = lines.replace("/run/peloton", str(tmp_path)).partition("\n\n")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        NGINX.format(folder=tmp_path, port=port, map=first.strip(), location=location.strip())
    )
    nginx = Program(
        reactor,
        folder=tmp_path,
        command=(system_binary("nginx"), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")),
    )
    nginx.child.start()
    try:
        await eventually(reactor, lambda: accepts(port) or nginx.child.pid is None)
        assert nginx.child.pid is not None, nginx.output
        answer = await fetch(reactor, "GET", f"http://127.0.0.1:{port}/who")
        # nginx itself speaks no TLS here, and what stands before it is its own client.
        assert answer.body == b"127.0.0.1 http"
        async with Client(f"ws://127.0.0.1:{port}/ws", reactor=reactor) as client:
            await client.publish("news", {"text": "hello"})
    finally:
        await nginx.stop()


def accepts(port: int) -> bool:
    try:
        connected(port).close()
    except ConnectionRefusedError:
        return False
    return True

"""Listeners of the whole server: TLS, redirects, UNIX sockets, systemd, balancers, several sets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from pelotontx.config import ListenerConfig
from pelotontx.net.admission import Admission
from pelotontx.net.http import HTTPFactory, Response
from pelotontx.net.systemd import Notifier
from pelotontx.net.wheel import Wheel
from pelotontx.services.listeners import Fronts, Listeners
from pelotontx.wire.forwarded import Proxies
from tests.support.certificates import Authority
from tests.support.listening import (
    TIMEOUT_S,
    ListeningServer,
    asked,
    connected,
    output_of,
    secured,
    shown_name,
)
from tests.support.programs import BIN
from tests.support.servers import eventually, free_port, system_binary

PROXY_1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50321 443\r\n"
PROXY_2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
    + struct.pack("!H", 12)
    + bytes([192, 0, 2, 8, 198, 51, 100, 1])
    + struct.pack("!HH", 50321, 443)
)


ACTIVATION = """
import os, sys
for number, kept in enumerate(sys.argv[1].split(",")):
    os.dup2(int(kept), 3 + number)
    os.close(int(kept))
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Certified:
    """An authority, a certificate of its for localhost, and a table that uses it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.authority = Authority(folder)
        self.certificate, self.key = self.authority.issue("one", "localhost", "127.0.0.1")
        self.url = f"https://localhost:{self.port}"
        self.table = (
            f'[[listener]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'certificate = "{self.certificate}"\nprivate_key = "{self.key}"\n'
        )

    def connected(self, **options: Any) -> ssl.SSLSocket:
        return secured(connected(self.port), self.authority.path, **options)

    def shown(self, name: str = "localhost") -> str:
        """Whose certificate a new client that asks for this host is shown."""
        with self.connected(name=name) as connection:
            return shown_name(connection)

    def curl(self, *words: str) -> str:
        """Status, HTTP's version and body, as curl sees them."""
        return output_of(
            *(system_binary("curl"), "--silent", "--show-error", "--cacert"),
            *(str(self.authority.path), "--write-out", " %{http_code} %{http_version}", *words),
        )


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return Certified(tmp_path)


class TestTLS:
    @pytest_twisted.ensureDeferred
    async def test_curl_is_served_over_tls(self, certified: Certified, tmp_path: Path) -> None:
        async with ListeningServer(reactor, certified.table, folder=tmp_path):
            shown = certified.curl("--http1.1", f"{certified.url}/who")
            assert shown == "127.0.0.1 https 200 1.1"
            shown = certified.curl("--http2", f"{certified.url}/who")
            assert shown == "127.0.0.1 https 200 2"

    @pytest_twisted.ensureDeferred
    async def test_only_new_versions_and_good_ciphers_are_spoken(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        def handshake(*words: str) -> str:
            return output_of(
                *(system_binary("openssl"), "s_client", "-connect", f"127.0.0.1:{certified.port}"),
                *("-CAfile", str(certified.authority.path), *words),
            )

        async with ListeningServer(reactor, certified.table, folder=tmp_path):
            for version in ("-tls1_2", "-tls1_3"):
                shown = handshake(version)
                assert "Verify return code: 0 (ok)" in shown, shown
                assert "GCM" in shown or "CHACHA20" in shown
            assert "Secure Renegotiation IS supported" in handshake("-tls1_2")
            assert "Compression: NONE" in handshake("-tls1_2")
            for words in (
                ("-tls1", "-cipher", "ALL:@SECLEVEL=0"),
                ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
                ("-tls1_2", "-cipher", "kRSA"),
                ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"),
            ):
                assert "Cipher is (NONE)" in handshake(*words), words

    @pytest_twisted.ensureDeferred
    async def test_a_renewed_certificate_is_used_while_connections_live(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        async with ListeningServer(reactor, certified.table, folder=tmp_path) as server:
            with certified.connected() as live:
                assert asked(live) == "127.0.0.1 https"
                fresh, key = certified.authority.issue("fresh", "localhost")
                os.replace(fresh, certified.certificate)
                server.child.signal(signal.SIGHUP)
                await eventually(reactor, lambda: "old certificate stays" in server.output)
                assert certified.shown() == "one"
                os.replace(key, certified.key)
                server.child.signal(signal.SIGHUP)
                await eventually(reactor, lambda: "was loaded anew" in server.output)
                assert certified.shown() == "fresh"
                assert (asked(live), shown_name(live)) == ("127.0.0.1 https", "one")

    @pytest_twisted.ensureDeferred
    async def test_a_name_chooses_among_certificates(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        other, key = certified.authority.issue("other", "*.shop.example")
        table = certified.table.replace(
            f'"{certified.certificate}"', f'["{certified.certificate}", "{other}"]'
        ).replace(f'"{certified.key}"', f'["{certified.key}", "{key}"]')
        async with ListeningServer(reactor, table, folder=tmp_path):
            assert certified.shown() == "one"
            assert certified.shown("www.shop.example") == "other"

    @pytest_twisted.ensureDeferred
    async def test_clients_without_a_certificate_stay_outside(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        mine, key = certified.authority.issue("mine", "x")
        table = f'{certified.table}client_ca = "{certified.authority.path}"\n'
        async with ListeningServer(reactor, table, folder=tmp_path):
            url = f"{certified.url}/who"
            shown = certified.curl("--http1.1", "--cert", str(mine), "--key", str(key), url)
            assert shown == "127.0.0.1 https 200 1.1"
            assert certified.curl("--http1.1", url).endswith(" 000 0")

    @pytest_twisted.ensureDeferred
    async def test_a_plain_listener_redirects_to_it(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        plain, other = free_port(), free_port()
        table = "".join(
            f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\nredirect = "{redirect}"\n'
            for port, redirect in ((plain, "https"), (other, "https:443"))
        )
        words = "%{http_code} %{redirect_url}"
        async with ListeningServer(reactor, table + certified.table, folder=tmp_path):
            for url, host, location in (
                (f"127.0.0.1:{plain}/a?b=c%20d", "", f"127.0.0.1:{certified.port}/a?b=c%20d"),
                (f"127.0.0.1:{plain}/", "shop.example:80", f"shop.example:{certified.port}/"),
                (f"127.0.0.1:{plain}/", "[::1]:80", f"[::1]:{certified.port}/"),
                (f"127.0.0.1:{other}/who", "shop.example", "shop.example/who"),
            ):
                shown = output_of(
                    *(system_binary("curl"), "--silent", "--write-out", words, "--data", "x=1"),
                    *(["--header", f"Host: {host}"] if host else []),
                    f"http://{url}",
                )
                assert shown == f"308 https://{location}"
            shown = certified.curl("--http1.1", "--location", f"http://localhost:{plain}/who")
            assert shown == "127.0.0.1 https 200 1.1"


class TestSets:
    @pytest_twisted.ensureDeferred
    async def test_listeners_serve_what_they_are_for(self, tmp_path: Path) -> None:
        ports = {what: free_port() for what in ("all", "application", "operations")}
        tables = "".join(
            f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\nserves = "{what}"\n'
            for what, port in ports.items()
        )
        statuses = {}
        async with ListeningServer(reactor, tables, folder=tmp_path):
            for what, port in ports.items():
                for path in ("/who", "/peloton.js", "/ws", "/health", "/metrics", "/debug/vars"):
                    with connected(port) as connection:
                        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                        statuses[what, path] = int(connection.recv(12)[9:])
        served = {
            what: {path for (of, path), status in statuses.items() if of == what and status != 404}
            for what in ports
        }
        application = {"/who", "/peloton.js", "/ws"}
        operations = {"/health", "/metrics", "/debug/vars"}
        assert served == {
            "all": application | operations,
            "application": application,
            "operations": operations,
        }

    @pytest_twisted.ensureDeferred
    async def test_if_one_cannot_listen_none_does(self, tmp_path: Path) -> None:
        free, taken = free_port(), free_port()
        with socket.create_server(("127.0.0.1", taken)):
            tables = "".join(
                f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
                for port in (free, taken)
            )
            server = ListeningServer(reactor, tables, folder=tmp_path)
            assert await server.refuses_to_start() == (
                f'peloton: peloton.toml: listener[1].endpoint: "tcp:{taken}:interface=127.0.0.1": '
                "cannot listen: Address already in use"
            )
        with pytest.raises(ConnectionRefusedError):
            connected(free)


class TestAddresses:
    @pytest_twisted.ensureDeferred
    async def test_an_ipv6_listener_takes_ipv4_clients_under_their_own_address(
        self, tmp_path: Path
    ) -> None:
        port = free_port()
        table = f'[[listener]]\nendpoint = "tcp6:{port}"\n'
        async with ListeningServer(reactor, table, folder=tmp_path):
            with connected(port) as connection:
                assert asked(connection) == "127.0.0.1 http"
            with socket.create_connection(("::1", port), TIMEOUT_S) as connection:
                assert asked(connection) == "::1 http"

    @pytest_twisted.ensureDeferred
    async def test_the_backlog_is_the_listeners_own(self) -> None:
        wheel = Wheel(reactor)  # type: ignore[arg-type]
        listeners = Listeners(
            reactor,
            listen=(),
            tables=[
                ListenerConfig(endpoint="tcp:0:interface=127.0.0.1", backlog=7),
                ListenerConfig(endpoint="tcp:0:interface=127.0.0.1:backlog=9", backlog=7),
            ],
            certificates={},
            fronts=Fronts(
                lambda handle: HTTPFactory(handle, wheel=wheel, clock=reactor),  # type: ignore[arg-type]
                lambda what: lambda request: Response(200),
            ),
            admission=Admission(reactor.seconds),  # type: ignore[attr-defined]
            wheel=wheel,
            proxies=Proxies(),
        )
        ports: list[Any] = []
        await listeners.start(ports)
        # Of a listening socket, tcpi_sacked is how many may wait to be accepted.
        backlogs = [
            struct.unpack_from(
                "I", port.socket.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 104), 28
            )
            for port in ports
        ]
        await listeners.stop(ports)
        wheel.stop()
        assert backlogs == [(7,), (9,)]

    @pytest_twisted.ensureDeferred
    async def test_the_short_form_and_tables_go_together(self, tmp_path: Path) -> None:
        short, long = free_port(), free_port()
        toml = (
            f'[server]\nlisten = ["tcp:{short}:interface=127.0.0.1"]\n'
            f'[[listener]]\nendpoint = "tcp:{long}:interface=127.0.0.1"\n'
        )
        async with ListeningServer(reactor, toml, folder=tmp_path) as server:
            await eventually(reactor, lambda: server.output.count("Listening on") == 2)
            for port in (short, long):
                with connected(port) as connection:
                    assert asked(connection) == "127.0.0.1 http"


class TestErrors:
    @pytest_twisted.ensureDeferred
    async def test_a_certificate_is_looked_at_before_anything_starts(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        certified.key.unlink()
        reason = (
            f'peloton.toml: listener[0].private_key: "{certified.key}": '
            "cannot be read: No such file or directory"
        )
        server = ListeningServer(reactor, certified.table, folder=tmp_path)
        assert await server.refuses_to_start() == f"peloton: {reason}"
        shown = output_of(str(BIN / "peloton"), "check-config", str(tmp_path / "peloton.toml"))
        assert shown.strip() == f"{tmp_path}/{reason}"


class TestUNIX:
    @pytest_twisted.ensureDeferred
    async def test_what_a_killed_server_left_is_in_nobodys_way(self, tmp_path: Path) -> None:
        path = tmp_path / "p.sock"
        table = f'[[listener]]\nendpoint = "unix:{path}:mode=640"\n'
        async with ListeningServer(reactor, table, folder=tmp_path) as server:
            await server.child.stop(timeout_s=0)
        assert path.is_socket()
        async with ListeningServer(reactor, table, folder=tmp_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect(str(path))
                assert asked(connection) == "unix http"
            other = ListeningServer(reactor, table, folder=tmp_path)
            assert await other.refuses_to_start() == (
                f'peloton: peloton.toml: listener[0].endpoint: "unix:{path}:mode=640": '
                "cannot listen: another process listens there"
            )
            assert path.is_socket()
        assert not path.exists()

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_is_no_socket_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("x")
        table = f'[[listener]]\nendpoint = "unix:{path}"\n'
        line = await ListeningServer(reactor, table, folder=tmp_path).refuses_to_start()
        assert line.endswith("cannot listen: there is a file that is no socket")
        assert path.read_text() == "x"


class TestProxyProtocol:
    @pytest_twisted.ensureDeferred
    async def test_the_application_sees_the_client(
        self, certified: Certified, tmp_path: Path
    ) -> None:
        port, path = free_port(), tmp_path / "p.sock"
        tables = (
            '[server]\nproxies = ["127.0.0.1"]\n'
            f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\nproxy_protocol = true\n'
            f'[[listener]]\nendpoint = "unix:{path}"\nproxy_protocol = true\n'
            f"{certified.table}proxy_protocol = true\n"
        )
        async with ListeningServer(reactor, tables, folder=tmp_path):
            for header, client in (
                (PROXY_1, "192.0.2.7"),
                (PROXY_2, "192.0.2.8"),
                (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
            ):
                with connected(port) as connection:
                    assert asked(connection, before=header) == f"{client} http"
                with connected(port) as connection:
                    for byte in header:
                        connection.sendall(bytes([byte]))
                    assert asked(connection) == f"{client} http"
                with connected(certified.port) as plain:
                    plain.sendall(header)
                    with secured(plain, certified.authority.path) as connection:
                        assert asked(connection) == f"{client} https"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect(str(path))
                assert asked(connection, before=PROXY_1) == "192.0.2.7 http"
            with connected(port) as connection:
                assert asked(connection) == ""  # no header
            with connected(port, source="127.0.0.2") as connection:
                assert asked(connection, before=PROXY_1) == ""  # no proxy of ours


@contextlib.contextmanager
def activated(
    folder: Path, sockets: list[tuple[str, socket.socket]], environ: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """The server as systemd starts it: sockets from descriptor 3 on, and its own number told."""
    # Above the numbers that they will have, so that none is overwritten before it has moved; not
    # numbers of our choice, which somebody in this process may have.
    kept = [fcntl.fcntl(own, fcntl.F_DUPFD_CLOEXEC, 100) for _, own in sockets]
    program = subprocess.Popen(
        [
            *(sys.executable, "-c", ACTIVATION, ",".join(map(str, kept))),
            *(str(BIN / "twistd"), "--nodaemon", "--pidfile=", "peloton", "-c", "peloton.toml"),
        ],
        env={
            **os.environ,
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in sockets),
            **environ,
        },
        cwd=folder,
        pass_fds=kept,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    for number in kept:
        os.close(number)
    try:
        yield program
    finally:
        program.kill()
        program.wait(TIMEOUT_S)


class TestSystemd:
    def test_its_sockets_are_listened_to_and_it_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "passed.sock"
        (tmp_path / "shown.py").write_text("")
        (tmp_path / "peloton.toml").write_text(
            '[broker]\nurl = "memory:"\n'
            '[[listener]]\nendpoint = "systemd:web"\n'
            '[[listener]]\nendpoint = "systemd:domain=UNIX:name=local"\nserves = "operations"\n'
        )
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
            socket.socket(socket.AF_UNIX) as local,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        ):
            local.bind(str(path))
            path.chmod(0o600)
            local.listen()
            notified.bind(str(tmp_path / "notify"))
            notified.settimeout(TIMEOUT_S)
            environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
            passed = [("web", one), ("local", local), ("web", two)]
            with activated(tmp_path, passed, environ) as program:
                assert notified.recv(100) == b"READY=1"
                assert [notified.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
                for own in (one, two):
                    with socket.create_connection(own.getsockname()[:2], TIMEOUT_S) as connection:
                        assert "peloton" in asked(connection, "/")
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(TIMEOUT_S)
                    connection.connect(str(path))
                    assert "peloton_" in asked(connection, "/metrics")
                program.terminate()
                told = b""
                while told != b"STOPPING=1":
                    told = notified.recv(100)
                assert program.wait(TIMEOUT_S) == -signal.SIGTERM  # as twistd ends, whole
            # They are systemd's: neither is shut down, nor is the file gone or its mode another.
            connected(one.getsockname()[1]).close()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_only_the_process_that_is_watched_feeds_the_watchdog(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind("")  # the kernel chooses a name without a file
            notified.settimeout(TIMEOUT_S)
            for pid, fed in ((os.getpid(), [b"WATCHDOG=1"] * 3), (os.getppid(), [])):
                clock = Clock()
                environ = {
                    "NOTIFY_SOCKET": "@" + notified.getsockname()[1:].decode(),
                    "WATCHDOG_USEC": "30000000",
                    "WATCHDOG_PID": str(pid),
                }
                notifier = Notifier(clock, environ)
                notifier.ready()
                clock.pump([14.9, 0.2, 15])
                notifier.stopping()
                clock.advance(60)
                told = [b"READY=1", *fed, b"STOPPING=1"]
                assert [notified.recv(100) for _ in told] == told
                assert clock.getDelayedCalls() == []

    @pytest_twisted.ensureDeferred
    async def test_without_such_a_socket_it_says_so(self, tmp_path: Path) -> None:
        table = '[[listener]]\nendpoint = "systemd:web"\n'
        line = await ListeningServer(reactor, table, folder=tmp_path).refuses_to_start()
        assert line == (
            'peloton: peloton.toml: listener[0].endpoint: "systemd:web": '
            "systemd has passed no such socket; passed: none"
        )

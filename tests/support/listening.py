"""A server with a configuration of its own, and blocking clients for it: it is another process."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

from tests.support.programs import Program
from tests.support.servers import eventually

TIMEOUT_S = 20.0

#: What an application shows of a request: who sends it, over what, and with which certificate.
APPLICATION = """
from pelotontx.web import App, html

app = App()

@app.get("^/who$")
def who(request):
    return html(f"{request.client} {request.scheme}")
"""


class ListeningServer(Program):
    """``twistd peloton`` with a configuration file; all of its listeners are waited for.

    Args:
        reactor: the tests' reactor.
        toml: the configuration; the broker is in memory.
        folder: where it runs; ``shown:app`` is an application there.
    """

    def __init__(self, reactor: Any, toml: str, *, folder: Path, **options: Any) -> None:
        self.folder = folder
        (folder / "shown.py").write_text(APPLICATION)
        (folder / "peloton.toml").write_text(
            f'[broker]\nurl = "memory:"\n[web]\napp = "shown:app"\n{toml}'
        )
        self._count = toml.count("[[listener]]") or 1
        super().__init__(reactor, "peloton", "--config", "peloton.toml", folder=folder, **options)

    async def __aenter__(self) -> ListeningServer:
        self.child.start()

        def listens() -> bool:
            assert self.child.pid is not None, self.output
            return self.output.count("Listening on") >= self._count

        await eventually(self.reactor, listens, timeout_s=TIMEOUT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def refuses_to_start(self) -> str:
        """Starts it, which must fail; why, as it says in one line."""
        self.child.start()
        status = await self.ended()
        assert status.code == 1, self.output
        (line,) = (line for line in self.lines if "peloton: " in line)
        return line[line.index("peloton: ") :]


def connected(port: int, *, source: str = "127.0.0.1") -> socket.socket:
    """A plain connection from an address of this machine."""
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(source, 0))


def secured(
    plain: socket.socket, authority: Path, *, name: str = "localhost", alpn: list[str] | None = None
) -> ssl.SSLSocket:
    """TLS over it, verified."""
    context = ssl.create_default_context(cafile=str(authority))
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    return context.wrap_socket(plain, server_hostname=name)


def asked(connection: socket.socket, path: str = "/who", *, before: bytes = b"") -> str:
    """The body that ``GET path`` is answered with; empty when the connection ends without."""
    connection.sendall(before + f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            received = connection.recv(65536)
            if not received:
                return ""
            data += received
    except ConnectionResetError:
        return ""
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:")
    while len(body) < length:
        body += connection.recv(65536)
    return body.decode()


def shown_name(connection: ssl.SSLSocket) -> str:
    """The common name of the server's certificate."""
    certificate: Any = connection.getpeercert()
    return str(dict(field[0] for field in certificate["subject"])["commonName"])


def output_of(*words: str, stdin: str = "") -> str:
    """What a program prints, on both of its outputs."""
    done = subprocess.run(
        words,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout

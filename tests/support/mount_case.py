"""Mounted applications over HTTP connections in memory."""

from __future__ import annotations

from typing import Any

from pelotontx.net.http import HTTPConnection, HTTPFactory
from pelotontx.web import App, Request
from pelotontx.web.mount import Host, Mounted
from tests.support.http_case import HTTPCase, Wire


def head_and_body(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


class MountCase(HTTPCase):
    """An app whose mounts live on `reactor`, which is the clock if a test says nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.app = App()
        self.factory = HTTPFactory(
            self.app.handle,
            wheel=self.wheel,
            clock=self.clock,
            limits=self.limits,
            request_class=Request,
            wall_clock=self.clock.seconds,
        )

    @property
    def reactor(self) -> Any:
        return self.clock

    def mount(self, prefix: str, target: Mounted) -> None:
        target.prepare(Host(reactor=self.reactor, wheel=self.wheel), "mount[0]")
        self.addCleanup(target.stop)
        self.app.mount(prefix, target)

    def send(
        self, method: str, target: str, body: bytes | None = None, **fields: str
    ) -> tuple[HTTPConnection, Wire]:
        """A connection that has got one request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: example.com"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        connection, wire = self.connect()
        connection.dataReceived("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return connection, wire

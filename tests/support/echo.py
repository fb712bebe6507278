"""A WebSocket echo server on the fast path, for conformance cases: text to text, binary to binary.

    python -m tests.support.echo PORT

Says that it listens, then serves on 127.0.0.1 until it is ended. Messages may be as long as the
longest case wants (16 MiB, one fragment or many); everything else is as in production.
"""

from __future__ import annotations

import sys
from typing import Any

from pelotontx.net import reactor as peloton_reactor
from pelotontx.net.http import HTTPFactory, Request, Upgrade
from pelotontx.net.tcp import listen
from pelotontx.net.websocket import Handshake, ServerFactory, WebSocketLimits
from pelotontx.net.wheel import Wheel

CONFORMANCE = WebSocketLimits(
    message_limit_bytes=16 * 1024 * 1024,
    fragments_limit=1024 * 1024,
    outbound_limit_bytes=64 * 1024 * 1024,
)


class Echo:
    """Sends back what it gets."""

    def __init__(self, connection: Any) -> None:
        self.text_received = connection.send_text
        self.binary_received = connection.send_binary

    def connection_lost(self, code: int) -> None: ...


def accept(handshake: Handshake) -> tuple[str | None, Any]:
    """Takes everybody, and the first subprotocol that is offered."""
    return next(iter(handshake.subprotocols), None), Echo


def main(port: int) -> None:
    reactor: Any = peloton_reactor.install()
    wheel = Wheel(reactor)
    websockets = ServerFactory(reactor, wheel=wheel, accept=accept, limits=CONFORMANCE)

    def handle(request: Request) -> Upgrade:
        return Upgrade(websockets.buildProtocol(request.peer))

    http = HTTPFactory(handle, wheel=wheel, clock=reactor)
    listening = listen(reactor, f"tcp:{port}:interface=127.0.0.1", http)
    listening.addCallbacks(
        lambda listener: print(f"listening on {listener.getHost().port}", flush=True),
        lambda failure: sys.exit(str(failure.value)),
    )
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))

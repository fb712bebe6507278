"""Compressed messages between the real server and the `websockets` library's client."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor

from tests.support.programs import PelotonServer, Program

CONFIG = """
[broker]
url = "memory:"
[websocket]
deflate = true
[[callee]]
object = "pelotontx.demo.callee:callee"
"""

#: Clients without compression, with it, and with a small window: each gets the same.
PROGRAM = """
import json, sys, uuid
from contextlib import ExitStack
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

TEXT = "a text that is long enough, " * 1000

def say(client, type_, **payload):
    meta = {"type": type_, "uuid": str(uuid.uuid4())}
    client.send(json.dumps({"meta": meta, "payload": payload}))

def hear(client, type_):
    answer = json.loads(client.recv(timeout=20))
    assert answer["meta"]["type"] == type_, answer
    return answer["payload"]

offers = [
    None,
    [ClientPerMessageDeflateFactory()],
    [ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=True)],
]
stack = ExitStack()
clients = [
    stack.enter_context(
        connect(sys.argv[1], subprotocols=["juggler.0"], compression=None, extensions=offer)
    )
    for offer in offers
]
print([client.response.headers.get("Sec-WebSocket-Extensions") for client in clients])
for client in clients:
    say(client, 1, uri="test.echo", timeout=0, args=TEXT)
    hear(client, 8)
    assert hear(client, 9)["args"] == TEXT
    say(client, 3, channel="c", pattern=False)
    hear(client, 8)
say(clients[1], 2, channel="c", args=TEXT)
hear(clients[1], 8)
for client in clients:
    assert hear(client, 10)["args"] == TEXT
    client.close()
    print(client.close_code)
"""

BOTH = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest_twisted.ensureDeferred
async def test_clients_with_and_without_compression_understand_us(tmp_path: Path) -> None:
    (tmp_path / "peloton.toml").write_text(CONFIG)
    async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
        program = Program(
            reactor, server.websocket_url, folder=tmp_path, command=(sys.executable, "-c", PROGRAM)
        )
        program.child.start()
        assert (await program.ended(timeout_s=60)).code == 0, program.output
        extensions = [None, BOTH, f"{BOTH}; server_max_window_bits=9"]
        assert program.lines == [str(extensions), *["1000"] * 3]

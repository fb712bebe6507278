"""Applications of other kinds, to be mounted by servers that tests start: `mounted_apps:...`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.web.resource import Resource
from twisted.web.static import Data, File

from pelotontx.web import App, Request
from pelotontx.web.mount import WSGI

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]

PLAIN = [("Content-Type", "text/plain")]

# The server's own application, which can look into the others.

app = App()
released = threading.Event()
running: set[str] = set()


@app.get(r"^/release$")
def release(request: Request) -> str:
    released.set()
    return "released"


@app.get(r"^/running$")
def show_running(request: Request) -> list[str]:
    return sorted(running)


@app.get(r"^/wsgi/own$")
def hidden(request: Request) -> str:
    return "a route that a mount hides"


def inner(environ: Environ, start_response: Start) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    return [f"inside {environ['SCRIPT_NAME']}".encode()]


app.mount("/inner", WSGI(inner))

# WSGI


def wsgi(environ: Environ, start_response: Start) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/wait":
        running.add(threading.current_thread().name)
        released.wait(30)
    if path == "/hash":
        digest = sha256()
        while piece := environ["wsgi.input"].read(64 * 1024):
            digest.update(piece)
        start_response("200 OK", PLAIN)
        return [digest.hexdigest().encode()]
    start_response("200 OK", PLAIN)
    return endless() if path == "/endless" else [f"wsgi {path}".encode()]


def endless() -> Iterator[bytes]:
    running.add("endless")
    try:
        while True:
            yield b"x" * 65536
    finally:
        running.discard("endless")


# twisted.web


class Echo(WebSocketServerProtocol):  # type: ignore[misc]
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


factory = WebSocketServerFactory()
factory.protocol = Echo
resource = Resource()
resource.putChild(b"ws", WebSocketResource(factory))
resource.putChild(b"code", File(__file__, defaultType="text/plain"))
root = Data(b"the root", "text/plain")
root.putChild(b"", root)  # what is asked for at "/"

# ASGI


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["path"].endswith("/endless"):
        await endless_stream(send)
    else:
        digest = sha256()
        while (message := await receive())["type"] == "http.request":
            digest.update(message["body"])
            if not message["more_body"]:
                break
        text = f"{digest.hexdigest()} {scope['state']['greeting']}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    scope["state"]["greeting"] = "hello"
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("the lifespan ends", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def endless_stream(send: Any) -> None:
    running.add("endless")
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = {"type": "http.response.body", "body": b"x" * 65536, "more_body": True}
            await send(message)
    finally:
        running.discard("endless")


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    chosen = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-mine", b"1")]})
    if scope["path"].endswith("/deaf"):
        running.add("deaf")
        while "deaf" in running and not released.is_set():
            await asyncio.sleep(0.01)
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 3333, "reason": "as asked"})
            return
        if scope["path"].endswith("/deaf"):  # an echo would find nobody who reads it yet
            message = {"text": str(len(message["text"]))}
        await send({**message, "type": "websocket.send"})
    print(f"the client closed with {message['code']}", flush=True)


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "lifespan.startup.failed", "message": "no database"})

"""Peers for `fanout.py`: a server of websockets or of aiohttp that passes on to all what one sends.

Whoever connects listens; a text message of anybody goes to all that listen, himself included.

    python fanout_peers.py websockets 9001
"""

import asyncio
import gc
import sys


async def serve_websockets(port: int) -> None:
    """The library's own `broadcast`, without compression and keepalive, which ours is without."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    listeners: set[ServerConnection] = set()

    async def serve_one(connection: ServerConnection) -> None:
        listeners.add(connection)
        try:
            async for message in connection:
                broadcast(listeners, message)
        finally:
            listeners.discard(connection)

    options = {"compression": None, "ping_interval": None}
    async with serve(serve_one, "127.0.0.1", port, backlog=4096, **options) as server:
        await server.serve_forever()


async def serve_aiohttp(port: int) -> None:
    """A loop over all, as its documentation has it."""
    from aiohttp import WSMsgType, web

    listeners: set[web.WebSocketResponse] = set()

    async def serve_one(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        listeners.add(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    for listener in tuple(listeners):
                        await listener.send_str(message.data)
        finally:
            listeners.discard(socket)
        return socket

    app = web.Application()
    app.router.add_get("/", serve_one)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    gc.freeze()
    servers = {"websockets": serve_websockets, "aiohttp": serve_aiohttp}
    asyncio.run(servers[sys.argv[1]](int(sys.argv[2])))

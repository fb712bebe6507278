"""A small juggler server on the `websockets` library, for tests of the client.

    python -m tests.support.juggler_server [--port N] [--mode serve|no-subprotocol|forbidden|mute]

Prints its port, then serves until it is killed. A called URI says what happens to the call.
"""

import argparse
import asyncio
import fnmatch
import http
import json
import uuid

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

subscriptions: dict[tuple[str, bool], set[ServerConnection]] = {}


def message(type_, **payload):
    payload = {name.removesuffix("_"): value for name, value in payload.items()}
    # As the original server: with a line feed.
    return (
        json.dumps({"meta": {"type": type_, "uuid": str(uuid.uuid4())}, "payload": payload}) + "\n"
    )


async def called(socket, uuid_, uri, args):
    ack = message(8, for_=uuid_, for_type=1, uri=uri)
    if uri == "refuse":
        await socket.send(
            message(7, for_=uuid_, for_type=1, uri=uri, code=500, message="list capacity exceeded")
        )
    elif uri == "early":
        await socket.send(message(9, for_=uuid_, uri=uri, args=args))
        await socket.send(ack)
    elif uri == "close":
        await socket.close(4008, "slow consumer")
    elif uri == "garbage":
        await socket.send("{")
    else:
        await socket.send(ack)
        await accepted(socket, uuid_, uri, args)


async def accepted(socket, uuid_, uri, args):
    if uri == "cut":
        socket.transport.abort()
    elif uri == "fail":
        args = {"error": {"message": "it broke\x1b"}}
        await socket.send(message(9, for_=uuid_, uri=uri, args=args))
    elif uri == "late":
        await asyncio.sleep(args)
        await socket.send(message(9, for_=uuid_, uri=uri, args="late"))
    elif uri != "silent":
        await socket.send(message(9, for_=uuid_, uri=uri, args=args))


async def publish(uuid_, channel, args):
    for (name, is_pattern), sockets in subscriptions.items():
        if is_pattern and fnmatch.fnmatch(channel, name):
            event = message(10, for_=uuid_, channel=channel, pattern=name, args=args)
        elif name == channel and not is_pattern:
            event = message(10, for_=uuid_, channel=channel, args=args)
        else:
            continue
        for socket in sockets:
            await socket.send(event)


async def handle(socket):
    tasks = []
    try:
        async for text in socket:
            request = json.loads(text)
            type_, uuid_ = request["meta"]["type"], request["meta"]["uuid"]
            payload = request["payload"]
            if type_ == 1:
                call = called(socket, uuid_, payload["uri"], payload.get("args"))
                tasks.append(asyncio.create_task(call))
                continue
            channel = payload["channel"]
            await socket.send(message(8, for_=uuid_, for_type=type_, channel=channel))
            if type_ == 2:
                if channel == "late":
                    await asyncio.sleep(0.1)
                await publish(uuid_, channel, payload["args"])
                continue
            sockets = subscriptions.setdefault((channel, payload["pattern"]), set())
            (sockets.add if type_ == 3 else sockets.discard)(socket)
    except ConnectionClosed:
        pass
    finally:
        for sockets in subscriptions.values():
            sockets.discard(socket)
        for task in tasks:
            task.cancel()


def forbid(socket, request):
    return socket.respond(http.HTTPStatus.FORBIDDEN, "no\n")


async def swallow(reader, writer):
    while await reader.read(4096):
        pass
    writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", default="serve")
    options = parser.parse_args()
    if options.mode == "mute":
        server = await asyncio.start_server(swallow, "127.0.0.1", options.port)
    else:
        server = await serve(
            handle,
            "127.0.0.1",
            options.port,
            subprotocols=None if options.mode == "no-subprotocol" else ["juggler.0"],
            process_request=forbid if options.mode == "forbidden" else None,
        )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())

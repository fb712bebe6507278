"""The original juggler's design, as a server and a callee, on Twisted's stock parts.

What `rpc.py` compares with. Kept of the original: one results list and one connection with a
blocking BRPOP for each client; one script a call that sets the timeout key and pushes; the callee
takes one call at a time by BRPOP, runs a script that reads and deletes its timeout key, and stores
its result by one script; the server runs that script again for each result. The messages and the
Redis layout are the original's.

Kinder than the original: commands share one pipelined connection (there: one borrowed from a pool
for each command, after a PING), no connection for events, TCP_NODELAY set where Autobahn forgets.

    python rpc_original.py server --redis PORT --listen PORT
    python rpc_original.py callee --redis PORT
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from typing import Any
from uuid import uuid4

import txredisapi
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.python import log

CALL, ACK, RES = 1, 8, 9

PUSH = """
redis.call("SET", KEYS[1], ARGV[1], "PX", tonumber(ARGV[1]))
local length = redis.call("LPUSH", KEYS[2], ARGV[2])
local limit = tonumber(ARGV[3])
if limit > 0 and length > limit then
  redis.call("LPOP", KEYS[2])
  return redis.error_reply("list capacity exceeded")
end
return length
"""
POP = """
local left = redis.call("PTTL", KEYS[1])
redis.call("DEL", KEYS[1])
return left
"""
PUSH_DIGEST, POP_DIGEST = (hashlib.sha1(source.encode()).hexdigest() for source in (PUSH, POP))
CAP = 0  # none, the original's default


def connect(redis: tuple[int, int]) -> Deferred[Any]:
    port, database = redis
    return txredisapi.Connection("127.0.0.1", port, database, reconnect=False, convertNumbers=False)


async def connect_commands(redis: tuple[int, int]) -> Any:
    commands = await connect(redis)
    for source in (PUSH, POP):
        await commands.script_load(source)
    return commands


def store(commands: Any, kind: str, name: str, call: dict[str, Any], left_ms: int) -> Deferred[Any]:
    keys = [f"juggler:{kind}:timeout:{{{name}}}:{call['msg_uuid']}", f"juggler:{kind}:{{{name}}}"]
    return commands.evalsha(PUSH_DIGEST, keys, [left_ms, json.dumps(call), CAP])


async def take(blocking: Any, commands: Any, kind: str, name: str) -> tuple[dict[str, Any], int]:
    """The next entry of a list and the milliseconds that it has left."""
    _, value = await blocking.brpop(f"juggler:{kind}:{{{name}}}", 0)
    call = json.loads(value)
    key = f"juggler:{kind}:timeout:{{{name}}}:{call['msg_uuid']}"
    return call, await commands.evalsha(POP_DIGEST, [key], [])


def spawn(coroutine: Any) -> Deferred[Any]:
    ended = Deferred.fromCoroutine(coroutine)
    return ended.addErrback(
        lambda failure: failure.trap(CancelledError, txredisapi.ConnectionError)
    ).addErrback(log.err)


class Session(WebSocketServerProtocol):
    """One client."""

    results: Any = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.setTcpNoDelay(True)

    def onConnect(self, request: Any) -> str:
        return "juggler.0"

    def onOpen(self) -> None:
        self.conn_uuid = str(uuid4())
        spawn(self.fetch_results())

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        request = json.loads(payload)
        if request["meta"]["type"] != CALL:
            self.sendClose(1003, "only calls here")
        else:
            spawn(self.call(request["meta"]["uuid"], request["payload"]))

    async def call(self, uuid: str, payload: dict[str, Any]) -> None:
        uri = payload["uri"]
        call = {"conn_uuid": self.conn_uuid, "msg_uuid": uuid, "uri": uri, "args": payload["args"]}
        await store(self.factory.commands, "calls", uri, call, payload["timeout"] // 1_000_000)
        self.answer(ACK, {"for": uuid, "for_type": CALL, "uri": uri})

    async def fetch_results(self) -> None:
        self.results = await connect(self.factory.redis)
        while self.state == self.STATE_OPEN:
            result, left_ms = await take(
                self.results, self.factory.commands, "results", self.conn_uuid
            )
            if left_ms > 0:
                fields = {"for": result["msg_uuid"], "uri": result["uri"], "args": result["args"]}
                self.answer(RES, fields)

    def answer(self, type_: int, payload: dict[str, Any]) -> None:
        message = {"meta": {"type": type_, "uuid": str(uuid4())}, "payload": payload}
        self.sendMessage(json.dumps(message).encode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.results is not None:
            spawn(self.leave())

    async def leave(self) -> None:
        await self.results.disconnect()


async def serve(redis: tuple[int, int], port: int) -> None:
    factory = WebSocketServerFactory(protocols=["juggler.0"])
    factory.protocol = Session
    factory.redis = redis
    factory.commands = await connect_commands(redis)
    reactor.listenTCP(port, factory, interface="127.0.0.1")


async def work(redis: tuple[int, int]) -> None:
    """The callee: `test.echo`, whose result is its args."""
    blocking = await connect(redis)
    commands = await connect_commands(redis)
    while True:
        call, left_ms = await take(blocking, commands, "calls", "test.echo")
        if left_ms > 0:
            spawn(finish(commands, call, left_ms))


async def finish(commands: Any, call: dict[str, Any], left_ms: int) -> None:
    await store(commands, "results", call["conn_uuid"], call, left_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description="the original's design, for rpc.py")
    parser.add_argument("role", choices=("server", "callee"))
    parser.add_argument("--redis", type=int, required=True, help="a port on 127.0.0.1")
    parser.add_argument("--database", type=int, default=0)
    parser.add_argument("--listen", type=int, help="a port on 127.0.0.1, for the server")
    arguments = parser.parse_args()
    log.startLogging(sys.stderr, setStdout=False)
    redis = (arguments.redis, arguments.database)
    running = serve(redis, arguments.listen) if arguments.role == "server" else work(redis)
    spawn(running)
    reactor.run()


if __name__ == "__main__":
    main()

"""The original's server: a results list and two Redis connections for each client.

    python -m tests.support.original.server --redis PORT --port PORT [--call-cap N]

Prints "listening" when it does. A bad message ends TCP without a close frame, each frame ends with
a line feed, and an answer may overtake its ACK, as there.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import uuid
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.support.original.redis import Redis, RedisError

CALL, PUB, SUB, UNSB = 1, 2, 3, 4
NACK, ACK, RES, EVNT = 7, 8, 9, 10
NAMES = {"call": CALL, "pub": PUB, "sub": SUB, "unsb": UNSB}
_DEFAULT_MS = 60_000


class Session:
    """One client."""

    def __init__(self, socket: ServerConnection, commands: Redis, port: int, call_cap: int) -> None:
        self._socket = socket
        self._commands = commands
        self._call_cap = call_cap
        self._conn_uuid = str(uuid.uuid4())
        self._results = Redis(port)
        self._events = Redis(port)
        header = (
            socket.request.headers.get("Juggler-Allowed-Messages", "") if socket.request else ""
        )
        named = {NAMES.get(name.strip().lower(), 0) for name in header.split(",")} - {0}
        self._allowed = named if named and "*" not in header else set(NAMES.values())

    def run(self) -> None:
        """Until the client leaves, or sends what it must not."""
        for target in (self._send_results, self._send_events):
            threading.Thread(target=target, daemon=True).start()
        try:
            for frame in self._socket:
                self._handle(json.loads(frame))
        except (ConnectionClosed, ValueError, KeyError, TypeError):
            self._socket.socket.close()
        finally:
            self._results.close()
            self._events.close()

    def _handle(self, message: dict[str, Any]) -> None:
        type_, for_ = message["meta"]["type"], str(uuid.UUID(message["meta"]["uuid"]))
        payload = message["payload"]
        if type_ not in NAMES.values():
            raise ValueError(f"type {type_}")
        subject = "uri" if type_ == CALL else "channel"
        about = {"for": for_, "for_type": type_, subject: payload[subject]}
        if type_ not in self._allowed:
            self._send(NACK, {**about, "code": 403, "message": "not allowed"})
            return
        try:
            self._do(type_, for_, payload)
        except RedisError as error:
            self._send(NACK, {**about, "code": 500, "message": str(error)})
        else:
            self._send(ACK, about)

    def _do(self, type_: int, for_: str, payload: dict[str, Any]) -> None:
        if type_ == CALL:
            call = {"conn_uuid": self._conn_uuid, "msg_uuid": for_, "uri": payload["uri"]}
            call["args"] = payload.get("args")
            timeout_ms = payload.get("timeout", 0) // 1_000_000 or _DEFAULT_MS
            self._commands.store("calls", payload["uri"], call, timeout_ms, self._call_cap)
        elif type_ == PUB:
            event = {"msg_uuid": for_, "args": payload.get("args")}
            self._commands.command("PUBLISH", payload["channel"], json.dumps(event))
        else:
            verb = "SUBSCRIBE" if type_ == SUB else "UNSUBSCRIBE"
            self._events.send(("P" if payload["pattern"] else "") + verb, payload["channel"])

    def _send_results(self) -> None:
        try:
            while True:
                result = self._results.pop("results", self._conn_uuid)
                id_ = result["msg_uuid"]
                if self._commands.time_left_ms("results", self._conn_uuid, id_) > 0:
                    fields = {"for": id_, "uri": result["uri"], "args": result.get("args")}
                    self._send(RES, fields)
        except (OSError, ConnectionClosed):
            return

    def _send_events(self) -> None:
        try:
            while True:
                kind, *topic, value = self._events.read()
                if kind not in (b"message", b"pmessage"):
                    continue
                event = json.loads(value)
                fields = {"for": event["msg_uuid"], "channel": topic[-1].decode()}
                if kind == b"pmessage":
                    fields["pattern"] = topic[0].decode()
                self._send(EVNT, {**fields, "args": event.get("args")})
        except (OSError, ConnectionClosed):
            return

    def _send(self, type_: int, payload: dict[str, Any]) -> None:
        message = {"meta": {"type": type_, "uuid": str(uuid.uuid4())}, "payload": payload}
        self._socket.send(json.dumps(message) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--call-cap", type=int, default=0)
    options = parser.parse_args()
    commands = Redis(options.redis)

    def handle(socket: ServerConnection) -> None:
        Session(socket, commands, options.redis, options.call_cap).run()

    with serve(handle, "127.0.0.1", options.port, subprotocols=["juggler.0"]) as server:
        print("listening", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())

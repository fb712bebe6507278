"""Load for `rpc.py`: juggler clients in a process of their own, on plain sockets and one epoll.

Each of N clients keeps M calls of `test.echo` in flight. Every call carries args of its own and an
id of its own; every ACK and RES is matched with them. It prints one JSON object and ends with
status 1 when a call was lost, refused, answered twice or answered with what belongs to another.

    python rpc_load.py PORT PATH --clients 100 --in-flight 8 --seconds 3 --watch server=PID
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import os
import select
import socket
import sys
import time
from typing import Any

import msgspec
from support import cpu_s, quantile

ACK, NACK, RES = 8, 7, 9
# Of a call; far longer than one takes: what is not back by then is lost.
TIMEOUT_S = 10
WARM_UP_S = 0.3


class Meta(msgspec.Struct):
    """``meta`` of a message."""

    type: int


class Payload(msgspec.Struct):
    """What is looked at of an answer."""

    for_: str = msgspec.field(default="", name="for")
    args: Any = None
    message: str = ""


class Message(msgspec.Struct):
    """An answer."""

    meta: Meta
    payload: Payload


_decode = msgspec.json.Decoder(Message).decode


class Client:
    """One WebSocket connection."""

    def __init__(self, load: Load, number: int, port: int, path: str) -> None:
        self.load = load
        self.number = number
        self.sent = 0
        self.prefix = f"{number:08x}-0000-4000-8000-"
        self.unparsed = b""
        # By id: when it was sent, its args, whether its ACK has come.
        self.calls: dict[str, list[Any]] = {}
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._shake_hands(port, path)

    def _shake_hands(self, port: int, path: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: juggler.0\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            read = self.socket.recv(4096)
            if not read:
                raise SystemExit(f"the server closed during the handshake: {head!r}")
            head += read
        if not head.startswith(b"HTTP/1.1 101 "):
            raise SystemExit(f"no WebSocket: {head!r}")

    def frame(self, now: float) -> bytes:
        """The next CALL as a frame."""
        self.sent += 1
        uuid = f"{self.prefix}{self.sent:012x}"
        args = f"{self.number}.{self.sent} 0012"
        self.calls[uuid] = [now, args, False]
        message = (
            f'{{"meta":{{"type":1,"uuid":"{uuid}"}},"payload":{{"uri":"test.echo",'
            f'"timeout":{TIMEOUT_S}000000000,"args":"{args}"}}}}'
        ).encode()
        # Masked with zeros: the server undoes the mask all the same.
        return b"\x81\xfe%b\0\0\0\0%b" % (len(message).to_bytes(2, "big"), message)

    def send(self, count: int) -> None:
        """Sends `count` calls in one piece."""
        now = time.perf_counter()
        data = b"".join([self.frame(now) for _ in range(count)])
        if self.socket.send(data) != len(data):
            raise SystemExit("the server does not read")

    def read(self) -> None:
        """Handles what has come; each result makes room for a new call."""
        data = self.socket.recv(65536)
        if not data:
            raise SystemExit("the server closed a connection")
        now = time.perf_counter()
        if self.unparsed:
            data = self.unparsed + data
        position, end, answered = 0, len(data), 0
        while end - position >= 2:
            length, start = data[position + 1], position + 2
            if length == 126:
                length, start = data[position + 2] << 8 | data[position + 3], position + 4
            if start + length > end:
                break
            if data[position] & 0x0F != 1:
                raise SystemExit(f"an unexpected frame: {data[position:]!r}")
            position = start + length
            answered += self.answer(data[start:position], now)
        self.unparsed = data[position:]
        if answered and self.load.is_sending:
            self.send(answered)

    def answer(self, frame: bytes, now: float) -> int:
        """Checks one answer; returns how many calls it has ended, 0 or 1."""
        message = _decode(frame)
        load, type_, uuid = self.load, message.meta.type, message.payload.for_
        call = self.calls.get(uuid)
        if call is None:
            load.unknown += 1
        elif type_ == RES:
            load.crossed += message.payload.args != call[1]
            load.without_ack += not call[2]
            # An ACK that is still to come keeps the call, without its time.
            if call[2]:
                del self.calls[uuid]
            elif call[0] is None:
                load.unknown += 1
                return 0
            load.results += 1
            if load.is_measuring:
                load.latencies.append(now - call[0])
            call[0] = None
            return 1
        elif type_ == ACK:
            load.acks += 1
            load.unknown += call[2]
            call[2] = True
            if call[0] is None:
                del self.calls[uuid]
        elif type_ == NACK:
            load.nacks += 1
            load.note = message.payload.message
            del self.calls[uuid]
            return 1
        else:
            load.unknown += 1
        return 0


class Load:
    """All clients, and what they have counted."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.is_sending = True
        self.is_measuring = False
        self.results = self.acks = self.nacks = 0
        self.unknown = self.crossed = self.without_ack = 0
        self.note = ""
        self.latencies: list[float] = []
        self.cpus: dict[str, float] = {}
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}

    def run(self) -> dict[str, Any]:
        """Connects, warms up, measures, waits for what is in flight."""
        arguments = self.arguments
        for number in range(arguments.clients):
            client = Client(self, number, arguments.port, arguments.path)
            self.clients[client.socket.fileno()] = client
            self.epoll.register(client.socket, select.EPOLLIN)
        gc.freeze()
        gc.disable()
        self._warm_up()
        cpus_before = self._cpus()
        self.is_measuring = True
        started = time.perf_counter()
        self._turn_until(started + arguments.seconds)
        seconds = time.perf_counter() - started
        self.is_measuring = False
        self.cpus = {name: cpu - cpus_before[name] for name, cpu in self._cpus().items()}
        self.is_sending = False
        self._turn_until(time.perf_counter() + TIMEOUT_S, until_answered=True)
        return self._figures(seconds)

    def _warm_up(self) -> None:
        """One call first: a server that has just started may still connect to its broker."""
        first = next(iter(self.clients.values()))
        first.send(1)
        self.is_sending = False
        self._turn_until(time.perf_counter() + TIMEOUT_S, until_answered=True)
        self.is_sending = True
        for client in self.clients.values():
            client.send(self.arguments.in_flight)
        self._turn_until(time.perf_counter() + WARM_UP_S)

    def _turn_until(self, deadline: float, *, until_answered: bool = False) -> None:
        clients, poll = self.clients, self.epoll.poll
        limit = self.arguments.calls
        while (now := time.perf_counter()) < deadline:
            if until_answered and not any(client.calls for client in clients.values()):
                return
            if self.is_sending and self.results >= limit:
                return
            for descriptor, _ in poll(deadline - now):
                clients[descriptor].read()

    def _cpus(self) -> dict[str, float]:
        cpus = {name: cpu_s(int(pid)) for name, pid in self.arguments.watch}
        return {**cpus, "load": time.process_time()}

    def _figures(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        count = len(ordered)
        lost = sum(len(client.calls) for client in self.clients.values())
        return {
            "calls": count,
            "seconds": seconds,
            "rate": count / seconds,
            "p50_ms": quantile(ordered, 0.5) * 1000,
            "p99_ms": quantile(ordered, 0.99) * 1000,
            "max_ms": quantile(ordered, 1.0) * 1000,
            "cpu_us": {name: cpu / max(count, 1) * 1e6 for name, cpu in self.cpus.items()},
            "cpu_share": {name: cpu / seconds for name, cpu in self.cpus.items()},
            "sent": sum(client.sent for client in self.clients.values()),
            "acks": self.acks,
            "results": self.results,
            "nacks": self.nacks,
            "note": self.note,
            "lost": lost,
            "crossed": self.crossed,
            "unknown": self.unknown,
            "results_before_ack": self.without_ack,
        }


def _watched(text: str) -> tuple[str, str]:
    name, _, pid = text.partition("=")
    return name, pid


def main() -> int:
    parser = argparse.ArgumentParser(description="juggler clients for rpc.py")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--calls", type=int, default=1_000_000, help="no more than so many")
    parser.add_argument("--watch", type=_watched, action="append", default=[], help="name=PID")
    figures = Load(parser.parse_args()).run()
    print(json.dumps(figures))
    return int(any(figures[name] for name in ("lost", "crossed", "unknown", "nacks")))


if __name__ == "__main__":
    sys.exit(main())

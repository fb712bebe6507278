"""Load for `fanout.py`: one publisher and many subscribers on plain sockets and one epoll.

The publisher keeps M events in flight: the next is sent when all subscribers have got the oldest.
Each event carries its number, and all have one length. Every fiftieth subscriber reads what it gets
and must get all events in order; of the others the bytes are counted, so that the load costs less
than the servers. It prints one JSON object and ends with status 1 when an event was lost, doubled
or out of order.

    python fanout_load.py PORT PATH --protocol juggler --subscribers 1000 --in-flight 4
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

from support import cpu_s, quantile

TIMEOUT_S = 20
WARM_UP_EVENTS = 20
READER_EVERY = 50
# All events have one length.
_FIRST = 100_000_000
_EVENT = b'{"n":%d,"text":"' + b"x" * 32 + b'"}'


class Plain:
    """A peer that passes on what it gets."""

    headers = ""
    subscription = b""

    @staticmethod
    def event(number: int) -> bytes:
        """What the publisher sends."""
        return _EVENT % (_FIRST + number)


class Juggler:
    """Ours."""

    headers = "Sec-WebSocket-Protocol: juggler.0\r\n"
    subscription = (
        b'{"meta":{"type":3,"uuid":"00000000-0000-4000-8000-000000000000"},'
        b'"payload":{"channel":"fanout","pattern":false}}'
    )

    @staticmethod
    def event(number: int) -> bytes:
        """What the publisher sends: a PUB."""
        return (
            b'{"meta":{"type":2,"uuid":"%08x-0000-4000-8000-000000000001"},'
            b'"payload":{"channel":"fanout","args":%b}}'
        ) % (number, Plain.event(number))


PROTOCOLS = {"plain": Plain, "juggler": Juggler}


def frame(message: bytes) -> bytes:
    """A client's text frame, masked with zeros: the server undoes the mask all the same."""
    size = len(message)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81%b\0\0\0\0%b" % (length, message)


def connect(port: int, path: str, headers: str) -> socket.socket:
    """A WebSocket after its handshake."""
    opened = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    opened.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"{headers}\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        read = opened.recv(4096)
        if not read:
            raise SystemExit(f"the server closed during the handshake: {head!r}")
        head += read
    if not head.startswith(b"HTTP/1.1 101 "):
        raise SystemExit(f"no WebSocket: {head!r}")
    return opened


def event_number(message: bytes) -> int:
    """Which event a subscriber has got; 0: it is none."""
    start = message.find(b'{"n":')
    return 0 if start < 0 else int(message[start + 5 : start + 14]) - _FIRST


def messages(data: bytes) -> tuple[list[bytes], bytes]:
    """The text messages of whole frames from a server, and what is left."""
    found, position, end = [], 0, len(data)
    while end - position >= 4:
        length, start = data[position + 1], position + 2
        if length == 126:
            length, start = data[position + 2] << 8 | data[position + 3], position + 4
        if start + length > end:
            break
        if data[position] == 0x81:
            found.append(data[start : start + length])
        position = start + length
    return found, data[position:]


class Load:
    """The publisher, the subscribers, and what they have counted."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.protocol: Any = PROTOCOLS[arguments.protocol]
        self.epoll = select.epoll()
        self.subscribers: dict[int, socket.socket] = {}
        self.readers: dict[int, bytes] = {}  # by descriptor: what is not parsed
        self.read_last: dict[int, int] = {}  # by descriptor: the event that was read last
        self.extra: dict[int, int] = {}  # by descriptor: bytes past the last whole event
        self.got: dict[int, int] = {}  # by descriptor: the last event
        self.size = 0  # of an event as subscribers get it
        self.buffer = bytearray(262_144)
        self.left: dict[int, int] = {}  # by event: how many have not got it
        self.sent_s: dict[int, float] = {}
        self.sent = 0
        self.deliveries = 0
        self.wrong = 0
        self.latencies: list[float] = []
        self.is_sending = True

    def run(self) -> dict[str, Any]:
        """Connects, warms up, measures, waits for what is in flight."""
        arguments, protocol = self.arguments, self.protocol
        for _ in range(arguments.subscribers):
            self._subscribe()
        # A peer's publisher listens as well; it is read so that it does not hold the server up.
        self.publisher = connect(arguments.port, arguments.path, protocol.headers)
        self.epoll.register(self.publisher, select.EPOLLIN)
        gc.freeze()
        gc.disable()
        for _ in range(arguments.in_flight):
            self._publish()
        self._turn(time.perf_counter() + TIMEOUT_S, events=WARM_UP_EVENTS)
        cpu_before, deliveries, latencies = cpu_s(arguments.pid), self.deliveries, self.latencies
        latencies.clear()
        started = time.perf_counter()
        self._turn(started + arguments.seconds)
        seconds = time.perf_counter() - started
        cpu = cpu_s(arguments.pid) - cpu_before
        deliveries = self.deliveries - deliveries
        ordered = sorted(latencies)
        self.is_sending = False
        self._turn(time.perf_counter() + TIMEOUT_S)
        return {
            "deliveries": deliveries,
            "rate": deliveries / seconds,
            "events": len(ordered),
            "p50_ms": quantile(ordered, 0.5) * 1000,
            "p99_ms": quantile(ordered, 0.99) * 1000,
            "cpu_us": cpu / max(deliveries, 1) * 1e6,
            "cpu_share": cpu / seconds,
            "lost": sum(self.left.values()),
            "wrong": self.wrong,
        }

    def _subscribe(self) -> None:
        opened = connect(self.arguments.port, self.arguments.path, self.protocol.headers)
        if self.protocol.subscription:
            opened.sendall(frame(self.protocol.subscription))
            acked, unparsed = [], b""
            while not acked:
                acked, unparsed = messages(unparsed + opened.recv(4096))
            if b'"type":8' not in acked[0]:
                raise SystemExit(f"not subscribed: {acked[0]!r}")
        descriptor = opened.fileno()
        self.subscribers[descriptor] = opened
        if len(self.subscribers) % READER_EVERY == 1:
            self.readers[descriptor] = b""
        self.extra[descriptor] = 0
        self.got[descriptor] = 0
        self.epoll.register(opened, select.EPOLLIN)

    def _publish(self) -> None:
        self.sent += 1
        self.left[self.sent] = len(self.subscribers)
        self.sent_s[self.sent] = time.perf_counter()
        self.publisher.sendall(frame(self.protocol.event(self.sent)))

    def _turn(self, deadline: float, *, events: int = sys.maxsize) -> None:
        """Reads until the time is over, so many events are through, or none is in flight."""
        subscribers, publisher = self.subscribers, self.publisher.fileno()
        while (now := time.perf_counter()) < deadline and self.left and self.sent < events:
            for descriptor, _ in self.epoll.poll(deadline - now, len(subscribers) + 1):
                if descriptor == publisher:
                    if not self.publisher.recv(262_144):
                        raise SystemExit("the server closed the publisher")
                else:
                    self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        size = self.subscribers[descriptor].recv_into(self.buffer)
        if not size:
            raise SystemExit("the server closed a subscriber")
        if descriptor in self.readers:
            self._check(descriptor, bytes(self.buffer[:size]))
        elif not self.size:  # the first event of all
            found, _ = messages(bytes(self.buffer[:size]))
            self.size = size // len(found)
        count, self.extra[descriptor] = divmod(self.extra[descriptor] + size, self.size)
        got = self.got[descriptor]
        self.got[descriptor] = got + count
        self.deliveries += count
        for number in range(got + 1, got + count + 1):
            self.left[number] -= 1
            if self.left[number] == 0:
                del self.left[number]
                self.latencies.append(time.perf_counter() - self.sent_s.pop(number))
                if self.is_sending:
                    self._publish()

    def _check(self, descriptor: int, data: bytes) -> None:
        """Reads what a reader has got."""
        found, self.readers[descriptor] = messages(self.readers[descriptor] + data)
        for message in found:
            self.read_last[descriptor] = last = self.read_last.get(descriptor, 0) + 1
            self.wrong += event_number(message) != last
        if not self.size:
            self.size = (len(data) - len(self.readers[descriptor])) // len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="a publisher and subscribers for fanout.py")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="juggler")
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--pid", type=int, required=True, help="the server's, for its CPU time")
    figures = Load(parser.parse_args()).run()
    print(json.dumps(figures))
    return int(bool(figures["lost"] or figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())

"""Raw Redis LPUSH and BRPOP each way, as often as a call needs it: a limit for `rpc.py`.

One process pushes onto a list of calls and pops from a list of results, another pops calls and
pushes results. No scripts, no timeouts, no WebSocket; blocking sockets, hiredis, everything that
is ready pipelined.

    python redis_limit.py echo --redis PORT
    python redis_limit.py call --redis PORT --in-flight 100 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time

import hiredis
from support import quantile

CALLS, RESULTS = "bench:calls", "bench:results"
# Pops that wait in the pipeline.
POPS = 64


class Connection:
    """A blocking connection to Redis."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def replies(self) -> list[object]:
        """Waits for replies and returns all that have come.

        Raises:
            EOFError: Redis has closed the connection.
        """
        replies: list[object] = []
        while not replies:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        return replies


def _connections(port: int, source: str, count: int) -> tuple[Connection, Connection, bytes]:
    """One that pops, with `count` pops on their way; one that pushes; what a pop is."""
    pops, pushes = Connection(port), Connection(port)
    pushes.send(hiredis.pack_command(("CLIENT", "REPLY", "OFF")))
    pop: bytes = hiredis.pack_command(("BRPOP", source, 0))
    pops.send(pop * count)
    return pops, pushes, pop


def echo(port: int) -> None:
    pops, pushes, pop = _connections(port, CALLS, POPS)
    pack = hiredis.pack_command
    try:
        while True:
            replies = pops.replies()
            pushes.send(b"".join([pack(("LPUSH", RESULTS, reply[1])) for reply in replies]))
            pops.send(pop * len(replies))
    except EOFError:
        return


def call(port: int, in_flight: int, seconds: float) -> dict[str, float]:
    pops, pushes, pop = _connections(port, RESULTS, min(POPS, in_flight))
    pack = hiredis.pack_command
    latencies = []
    clock = time.perf_counter
    now = started = clock()
    count = in_flight
    in_flight_left = 0
    deadline = started + seconds
    while True:
        if now < deadline:
            entry = b"%.9f %b" % (now, b"x" * 120)
            pushes.send(pack(("LPUSH", CALLS, entry)) * count)
            in_flight_left += count
        if not in_flight_left:
            break
        replies = pops.replies()
        now = clock()
        latencies.extend([now - float(reply[1].split()[0]) for reply in replies])
        count = len(replies)
        in_flight_left -= count
        pops.send(pop * count)
    ordered = sorted(latencies)
    return {
        "rate": len(ordered) / (now - started),
        "p50_ms": quantile(ordered, 0.5) * 1000,
        "p99_ms": quantile(ordered, 0.99) * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="LPUSH and BRPOP each way, for rpc.py")
    parser.add_argument("role", choices=("echo", "call"))
    parser.add_argument("--redis", type=int, required=True, help="a port on 127.0.0.1")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    if arguments.role == "echo":
        echo(arguments.redis)
    else:
        figures = call(arguments.redis, arguments.in_flight, arguments.seconds)
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())

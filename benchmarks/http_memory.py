"""What a request costs in Python alone: our HTTP without sockets, over a transport in memory.

For work on the hot path of `net/http` and `web/app`: it repeats to a few hundredths of a
microsecond where a load over sockets does not. One connection, 101 routes; the best of some rounds.

- one: a request a read, always the same;
- pipelined: 16 of them in a read;
- alternating: 16 in a read, two paths by turns, so that no head is the last one again;
- long heads: the same with the fields of a browser.

    python benchmarks/http_memory.py
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from support import save, table, versions
from twisted.internet.interfaces import IAddress
from twisted.internet.testing import MemoryReactorClock

from pelotontx.net.http import HTTPFactory, HTTPLimits, Response
from pelotontx.net.wheel import Wheel
from pelotontx.web import App, Request

BODY = b"Hello, this is 27 bytes ok."
PATHS = (b"/hello", b"/section7/abc")
HEAD = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n%b\r\n"
BROWSER = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Accept-Language: en-GB,en;q=0.9\r\nCookie: a=b\r\n"
)
READS = {
    "one": HEAD % (PATHS[0], b""),
    "pipelined": HEAD % (PATHS[0], b"") * 16,
    "alternating": b"".join(HEAD % (path, b"") for path in PATHS) * 8,
    "long heads": b"".join(HEAD % (path, BROWSER) for path in PATHS) * 8,
}


class Transport:
    """Takes everything."""

    def write(self, data: bytes) -> None: ...

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def getPeer(self) -> IAddress | None:
        return None


def connection() -> Any:
    """A connection to an app of 101 routes, without a limit of requests."""
    reactor: Any = MemoryReactorClock()
    reactor.advance(1_000_000)
    app = App()
    for number in range(100):
        app.get(rf"^/section{number}/(\w+)$")(lambda request, word: word)
    app.get(r"^/hello$")(lambda request: Response(200, BODY, content_type="text/plain"))
    factory = HTTPFactory(
        app.handle,
        wheel=Wheel(reactor),
        clock=reactor,
        limits=HTTPLimits(requests=10**9),
        request_class=Request,
    )
    made: Any = factory.buildProtocol(None)
    made.makeConnection(Transport())
    return made


def measure(read: bytes, rounds: int, reads: int) -> float:
    """Microseconds a request, the best of the rounds."""
    receive = connection().dataReceived
    requests = reads * read.count(b"GET ")
    best_s = float("inf")
    for _ in range(rounds):
        began_s = time.perf_counter()
        for _ in range(reads):
            receive(read)
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s / requests * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", metavar="FILE", help="default: build/benchmarks/http_memory.json")
    arguments = parser.parse_args()
    rounds, reads = (1, 50) if arguments.quick else (7, 3000)
    figures = {name: measure(read, rounds, reads) for name, read in READS.items()}
    print(table(["", "us a request"], [[name, f"{us:.2f}"] for name, us in figures.items()]))
    save("http_memory", {"versions": versions("pelotontx"), "us": figures}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

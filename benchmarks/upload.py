"""A large upload beside starlette and twisted.web: memory, stalls of the event loop, speed.

    python benchmarks/upload.py [--mib 100] [--rounds 3] [--without starlette] [--json FILE]

One process a server on core 0; a client on the other cores posts a form with one file of random
bytes. `grown` is the most memory that the process has had (VmHWM) above what it had after a small
upload, `stall` how late a timer of 5 ms was at worst, `CPU` that of all its threads. Each round has
fresh processes, and the servers take turns. "stored" also keeps the file, durably (fsync), which
the others are not asked for.

Claims: memory grows by less than 16 MiB, and no stall is longer than 50 ms.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support import (
    Program,
    accepts,
    cores,
    cpu_s,
    free_port,
    median,
    peer_python,
    save,
    table,
    versions,
)

SYSTEMS = ("ours", "ours, stored", "starlette", "twisted.web")
STARLETTE = ("uvicorn", "uvloop", "httptools", "starlette", "python_multipart")
MIB = 1024 * 1024
TIMER_S = 0.005

ASGI = f"""
import asyncio, time
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

longest = 0.0

async def watch():
    global longest
    while True:
        due = time.monotonic() + {TIMER_S}
        await asyncio.sleep({TIMER_S})
        longest = max(longest, time.monotonic() - due)

async def stall(request):
    global longest
    if not hasattr(app.state, "watching"):
        app.state.watching = asyncio.create_task(watch())
    seen, longest = longest, 0.0
    return PlainTextResponse(str(seen))

async def upload(request):
    async with request.form() as form:
        return PlainTextResponse(str(form["file"].size))

app = Starlette(routes=[Route("/stall", stall), Route("/upload", upload, methods=["POST"])])
"""


class Stall:
    """The longest delay of a short timer."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._longest_s = 0.0
        self._again()

    def taken(self) -> str:
        """The longest since this was asked."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return str(longest_s)

    def _again(self) -> None:
        self._due_s = time.monotonic() + TIMER_S
        self._reactor.callLater(TIMER_S, self._ring)

    def _ring(self) -> None:
        self._longest_s = max(self._longest_s, time.monotonic() - self._due_s)
        self._again()


def serve_ours(port: int, kept: Path | None) -> None:
    from pelotontx.net.reactor import install

    reactor = install()
    from pelotontx.net.http import HTTPFactory
    from pelotontx.net.tcp import listen
    from pelotontx.net.wheel import Wheel
    from pelotontx.web import App, Request
    from pelotontx.web.forms import FormLimits
    from pelotontx.web.uploads import DiskSink

    app, stall = App(), Stall(reactor)
    app.get("/stall")(lambda request: stall.taken())

    @app.post("/upload", stream=True)
    async def upload(request: Request) -> str:
        async with request.read_form() as form:
            file = form.file("file")
            if kept is not None:
                await file.store(kept, replace=True)
            return str(file.size_bytes)

    sink = DiskSink(reactor, folder=os.getcwd())
    limits = FormLimits(body_bytes=1024 * MIB)
    own = {"__slots__": (), "uploads": sink, "form_limits": limits}
    factory = HTTPFactory(
        app.handle,
        wheel=Wheel(reactor),
        clock=reactor,
        request_class=type("Request", (Request,), own),
    )
    listen(reactor, f"tcp:{port}:interface=127.0.0.1", factory)
    reactor.addSystemEventTrigger("before", "shutdown", sink.stop)
    reactor.run()


def serve_twisted_web(port: int) -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    stall = Stall(reactor)

    class Upload(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return stall.taken().encode()

        def render_POST(self, request: Any) -> bytes:
            return str(len(request.args[b"file"][0])).encode()

    reactor.listenTCP(port, Site(Upload()), interface="127.0.0.1")  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def command(system: str, port: int, folder: Path) -> list[str]:
    if system != "starlette":
        return [sys.executable, __file__, "--serve", system, "--port", str(port)]
    (folder / "upload_asgi.py").write_text(ASGI)
    options = "--loop uvloop --http httptools --no-access-log --log-level warning"
    return [
        *(peer_python(*STARLETTE), "-m", "uvicorn", "upload_asgi:app", *options.split()),
        *("--port", str(port), "--app-dir", str(folder)),
    ]


def ask(port: int, method: str, path: str, size: int | None = None) -> str:
    """One request, an upload of `size` bytes if that is given; the answer's body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {}
    body = None
    if size is not None:
        head = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        end = b"\r\n--b--\r\n"
        headers["Content-Type"] = "multipart/form-data; boundary=b"
        headers["Content-Length"] = str(len(head) + size + len(end))
        block = os.urandom(MIB)
        body = (piece for pieces in ([head], [block] * (size // MIB), [end]) for piece in pieces)
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {text}")
    return text


def memory_mib(pid: int, name: str) -> float:
    """A line of /proc/PID/status: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def sample(system: str, size_mib: int) -> dict[str, float]:
    """One upload to a fresh server."""
    here, others = cores()
    os.sched_setaffinity(0, others)
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        words = command(system, port, folder)
        with Program(system, words, cpus=here, folder=folder) as server:
            server.wait_until(accepts(port))
            ask(port, "GET", "/stall")  # starlette begins to watch
            ask(port, "POST", "/upload", MIB)
            before_mib, before_s = memory_mib(server.pid, "VmRSS"), cpu_s(server.pid)
            ask(port, "GET", "/stall")
            began_s = time.monotonic()
            taken = ask(port, "POST", "/upload", size_mib * MIB)
            elapsed_s = time.monotonic() - began_s
            if int(taken) != size_mib * MIB:
                raise RuntimeError(f"{system} took {taken} bytes")
            return {
                "grown_mib": memory_mib(server.pid, "VmHWM") - before_mib,
                "stall_ms": 1000 * float(ask(port, "GET", "/stall")),
                "mib_s": size_mib / elapsed_s,
                "cpu_s": cpu_s(server.pid) - before_s,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="A large upload: memory, stalls, speed")
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], choices=SYSTEMS)
    parser.add_argument("--json", help="where the figures go, as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve == "twisted.web":
        serve_twisted_web(options.port)
        return
    if options.serve:
        serve_ours(options.port, Path("kept") if options.serve == "ours, stored" else None)
        return
    systems = [system for system in SYSTEMS if system not in options.without]
    samples: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
    for _ in range(options.rounds):
        for system in systems:
            samples[system].append(sample(system, options.mib))
    medians = {
        system: {key: median(one[key] for one in found) for key in found[0]}
        for system, found in samples.items()
    }
    head = ("system", "grown MiB", "stall ms", "MiB/s", "CPU s")
    rows = [(name, *(f"{value:.2f}" for value in row.values())) for name, row in medians.items()]
    print(table(head, rows))
    figures = {
        "mib": options.mib,
        "medians": medians,
        "samples": samples,
        "versions": versions("pelotontx", "Twisted", "multipart"),
    }
    save("upload", figures, options.json)


if __name__ == "__main__":
    main()

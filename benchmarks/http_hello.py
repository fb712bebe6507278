"""HTTP hello beside uvicorn and twisted.web: requests a second, and CPU a request.

    python benchmarks/http_hello.py [--seconds 4] [--rounds 5] [--json FILE]

One process a server, pinned to core 0; wrk on core 1 with 50 keep-alive connections, once one
request at a time and once 16 pipelined. The servers take turns, so that a slow minute of the
machine hits all of them; medians of the rounds are compared. Ours runs as it is shipped: 50 routes
of which the last is asked for, deadlines and limits on. uvicorn runs a bare ASGI callable on uvloop
and httptools; twisted.web a leaf resource on Twisted's own reactor.

Claims: at least 2.3 times uvicorn and 5 times twisted.web; pipelined at least 8 times uvicorn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import free_port, peer_python

BODY = b"Hello, this is 27 bytes ok."
PEERS = ("uvicorn", "uvloop", "httptools")
SERVERS = ("pelotontx", "uvicorn", "twisted.web")
CONNECTIONS = 50
DEPTH = 16

PIPELINE = f"""
init = function(args)
  local requests = {{}}
  for i = 1, {DEPTH} do requests[i] = wrk.format("GET", "/hello") end
  all = table.concat(requests)
end
request = function() return all end
"""


def serve_ours(port: int) -> None:
    from pelotontx.net.reactor import install

    reactor = install()
    from pelotontx.net.http import HTTPFactory, Response
    from pelotontx.net.tcp import listen
    from pelotontx.net.wheel import Wheel
    from pelotontx.web import App, Request

    app = App()
    for number in range(49):
        app.get(rf"^/section{number}/(\w+)$")(lambda request, name: name)

    @app.get(r"^/hello$")
    def hello(request: Request) -> Response:
        return Response(200, BODY, content_type="text/plain")

    factory = HTTPFactory(app.handle, wheel=Wheel(reactor), clock=reactor, request_class=Request)
    listen(reactor, f"tcp:{port}:interface=127.0.0.1", factory)
    reactor.run()


def serve_twisted_web(port: int) -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    class Hello(Resource):
        isLeaf = True

        def render_GET(self, request):  # type: ignore[no-untyped-def]
            request.setHeader(b"content-type", b"text/plain")
            return BODY

    reactor.listenTCP(port, Site(Hello()), interface="127.0.0.1")  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


ASGI = f"""
async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"text/plain"), (b"content-length", b"{len(BODY)}")]}})
    await send({{"type": "http.response.body", "body": {BODY!r}}})
"""


class Server:
    """A server in a process of its own on core 0."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        if name == "uvicorn":
            (folder / "hello_asgi.py").write_text(ASGI)
            options = "--loop uvloop --http httptools --no-access-log --log-level warning"
            command = [peer_python(*PEERS), "-m", "uvicorn", "hello_asgi:app", *options.split()]
            command += ["--port", str(self.port), "--app-dir", str(folder)]
        else:
            command = [sys.executable, __file__, "--serve", name, "--port", str(self.port)]
        self.process = subprocess.Popen(["taskset", "-c", "0", *command])
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, seconds: float, script: Path | None) -> dict[str, float]:
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
        if script is not None:
            command += ["-s", str(script)]
        before = self.cpu_s()
        url = f"http://127.0.0.1:{self.port}/hello"
        output = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
        count = re.search(r"(\d+) requests in", output)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
        if count is None or rate is None or "Non-2xx" in output:
            raise SystemExit(f"{self.name}: {output}")
        cpu_us = (self.cpu_s() - before) * 1e6 / int(count[1])
        return {"rate": float(rate[1]), "cpu_us": cpu_us}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure(seconds: float, rounds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "pipeline.lua"
        script.write_text(PIPELINE)
        servers = [Server(name, Path(folder)) for name in SERVERS]
        try:
            for server in servers:
                server.load(1, None)
            for _ in range(rounds):
                for load, lua in (("one in flight", None), (f"{DEPTH} pipelined", script)):
                    for server in servers:
                        sample = server.load(seconds, lua)
                        kept = results.setdefault(load, {}).setdefault(server.name, {})
                        for key, value in sample.items():
                            kept.setdefault(key, []).append(value)
        finally:
            for server in servers:
                server.stop()
    return results


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("twisted", "pelotontx", *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "in its own venv"
    return found


def report(results: dict[str, dict[str, dict[str, list[float]]]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(
        f"{'load':15} {'server':12} {'ratio':>6} {'requests/s':>11} {'CPU us':>7} {'CPU ratio':>9}"
    )
    for load, servers in results.items():
        medians = {
            name: {key: statistics.median(values) for key, values in samples.items()}
            for name, samples in servers.items()
        }
        ours = medians["pelotontx"]
        for name, median in medians.items():
            ratio = ours["rate"] / median["rate"]
            cpu_ratio = median["cpu_us"] / ours["cpu_us"]
            rows.append(
                {"load": load, "server": name, "ours_faster": ratio, "cpu_less": cpu_ratio}
                | median
                | {"samples": servers[name]}
            )
            print(
                f"{load:15} {name:12} {ratio:6.2f} {median['rate']:11.0f} "
                f"{median['cpu_us']:7.1f} {cpu_ratio:9.2f}"
            )
    print("ratio: how many times faster pelotontx is; CPU ratio: how much less it needs a request")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="HTTP hello beside uvicorn and twisted.web")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        (serve_ours if options.serve == "pelotontx" else serve_twisted_web)(options.port)
        return
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    rows = report(measure(options.seconds, options.rounds))
    document = json.dumps({"versions": versions(), "rows": rows}, indent=1)
    if options.json:
        options.json.write_text(document)
    else:
        print(document)


if __name__ == "__main__":
    main()

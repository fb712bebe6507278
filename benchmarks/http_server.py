"""HTTP beside what people use: requests a second, and CPU time a request or a megabyte.

In one run, interleaved, a process a server on a core of its own and wrk on another:

- hello: 27 bytes; one request in flight on each of 50 connections;
- json: a small document, encoded for each request;
- routed: the last of 100 patterns, one word captured;
- pipelined: hello, 16 requests in flight on each connection;
- 10 KB: a static file;
- 100 MB: a static file on 2 connections; what counts is CPU time a megabyte.

Ours is `twistd peloton` with all that it has by default: deadlines, limits, metrics, broker.
uvicorn (uvloop, httptools) and granian answer hello without a framework, the rest with Starlette;
twisted.web runs on Twisted's own reactor. nginx is one process: what it serves are files (hello is
one of 27 bytes), once with its cache of open files and once without; "nginx return" has the answers
in its configuration, which no application could.

Claims: at least 2.3 times uvicorn, 5 times twisted.web and 0.9 times nginx at hello, 8 times
uvicorn pipelined; 10 KB as fast as nginx with its file cache; 100 MB for no more CPU time than
nginx without.

    python benchmarks/http_server.py            # about six minutes
    python benchmarks/http_server.py --quick    # some seconds, for a first look and for CI
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from http_peers import BODY, nginx_configuration, node_program
from support import (
    HERE,
    Program,
    accepts,
    cores,
    cpu_s,
    free_port,
    median,
    peer_python,
    save,
    script,
    table,
    versions,
)

PEERS = ("uvicorn", "uvloop", "httptools", "starlette", "aiohttp", "granian")
CONNECTIONS = 50
DEPTH = 16

CONFIG = """
[broker]
url = "memory:"
[web]
app = "http_peers:app"
"""

PIPELINE = f"""
init = function(args)
  local requests = {{}}
  for i = 1, {DEPTH} do requests[i] = wrk.format() end
  all = table.concat(requests)
end
request = function() return all end
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for.

    Attributes:
        megabytes: of one answer, when CPU time is told a megabyte; else 0.
    """

    name: str
    path: str
    connections: int = CONNECTIONS
    pipelined: bool = False
    megabytes: int = 0


WORKS = (
    Work("hello", "/hello"),
    Work("json", "/json"),
    Work("routed", "/section99/word"),
    Work("pipelined", "/hello", pipelined=True),
    Work("10 KB", "/files/10k.bin"),
    Work("100 MB", "/files/100m.bin", connections=2, megabytes=100),
)


class Server:
    """One server that runs."""

    def __init__(self, name: str, home: Path, stack: ExitStack) -> None:
        self.name = name
        self.port = free_port()
        self._home = home / name.replace(" ", "-")
        self._home.mkdir()
        self._files = home / "files"
        command = self._command()
        environ = {"FILES": str(self._files), "PYTHONPATH": str(HERE)}
        self.program = stack.enter_context(
            Program(name, command, cpus=cores()[0], environ=environ, folder=self._home)
        )
        self.program.wait_until(accepts(self.port), 60)

    def _command(self) -> list[str]:
        port = str(self.port)
        if self.name == "ours":
            (self._home / "peloton.toml").write_text(CONFIG)
            words = ["--nodaemon", "--pidfile=", "peloton", "--config", "peloton.toml", "--listen"]
            return [script("twistd"), *words, f"tcp:{port}:interface=127.0.0.1"]
        if self.name == "uvicorn":
            words = "--factory --loop uvloop --http httptools --no-access-log --log-level warning"
            program = [peer_python(*PEERS), "-m", "uvicorn", "http_peers:starlette"]
            return [*program, *words.split(), "--port", port]
        if self.name == "granian":
            words = "--interface asgi --factory --workers 1 --no-access-log --log-level warning"
            program = [peer_python(*PEERS), "-m", "granian", "http_peers:starlette"]
            return [*program, *words.split(), "--port", port]
        if self.name == "aiohttp":
            return [peer_python(*PEERS), str(HERE / "http_peers.py"), self.name, port]
        if self.name == "twisted.web":
            return [sys.executable, str(HERE / "http_peers.py"), self.name, port]
        if self.name == "node":
            (self._home / "server.js").write_text(node_program())
            return ["node", "server.js", port, str(self._files)]
        text = nginx_configuration(
            str(self._home), self.port, str(self._files), cached=self.name == "nginx"
        )
        (self._home / "nginx.conf").write_text(text)
        return [_nginx(), "-p", str(self._home), "-c", str(self._home / "nginx.conf")]

    def path(self, work: Work) -> str:
        """Where this server has the answer; "" if it has none of that kind."""
        is_file = work.path.startswith("/files/")
        if self.name == "nginx return":
            return "" if is_file else work.path
        if self.name.startswith("nginx") and not is_file:
            return "/files/hello.txt" if work.path == "/hello" else ""
        return work.path

    def load(self, work: Work, seconds: float, pipeline: Path) -> dict[str, float]:
        """Wrk for `seconds`, which wrk takes in whole ones."""
        command = ["wrk", "-t1", f"-c{work.connections}", f"-d{max(1, round(seconds))}s"]
        if work.pipelined:
            command += ["-s", str(pipeline)]
        command.append(f"http://127.0.0.1:{self.port}{self.path(work)}")
        before = _family_cpu_s(self.program.pid)
        with Program("wrk", command, cpus=cores()[1]) as wrk:
            output = wrk.wait(seconds + 30)
        used_s = _family_cpu_s(self.program.pid) - before
        count = re.search(r"(\d+) requests in", output)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
        read = re.search(r"requests in [\d.]+\w+, ([\d.]+)(KB|MB|GB) read", output)
        if count is None or rate is None or read is None or "Non-2xx" in output:
            raise SystemExit(f"{self.name}, {work.name}: {output}")
        megabytes = float(read[1]) * {"KB": 1e-3, "MB": 1.0, "GB": 1e3}[read[2]] * 1.048576
        if work.megabytes:
            return {"rate": megabytes / seconds, "cpu_us": used_s * 1e6 / megabytes}
        return {"rate": float(rate[1]), "cpu_us": used_s * 1e6 / max(1, int(count[1]))}


def _nginx() -> str:
    path = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if path is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light, or --without nginx")
    return path


def _family_cpu_s(pid: int) -> float:
    """CPU time of a process and of those that it has started."""
    total = cpu_s(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += _family_cpu_s(int(child))
    return total


SERVERS = (
    *("ours", "uvicorn", "granian", "aiohttp", "twisted.web"),
    *("node", "nginx", "nginx uncached", "nginx return"),
)

Cells = dict[str, dict[str, dict[str, list[float]]]]


def run(arguments: argparse.Namespace) -> Cells:
    """Works, servers, figures, a sample a round."""
    cells: Cells = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write_files(home / "files", small=arguments.quick)
        pipeline = home / "pipeline.lua"
        pipeline.write_text(PIPELINE)
        servers = [Server(name, home, stack) for name in arguments.servers]
        for server in servers:
            server.load(WORKS[0], 1, pipeline)  # warm
        for _ in range(arguments.rounds):
            for work in arguments.works:
                for server in (server for server in servers if server.path(work)):
                    sample = server.load(work, arguments.seconds, pipeline)
                    kept = cells.setdefault(work.name, {}).setdefault(server.name, {})
                    for figure, value in sample.items():
                        kept.setdefault(figure, []).append(value)
    return cells


def _write_files(folder: Path, *, small: bool) -> None:
    folder.mkdir()
    (folder / "hello.txt").write_bytes(BODY)
    (folder / "10k.bin").write_bytes(os.urandom(10_000))
    with (folder / "100m.bin").open("wb") as file:
        for _ in range(1 if small else 100):
            file.write(os.urandom(1_000_000))


def show(cells: Cells) -> None:
    """A table for people: how many times faster ours is, and how much less CPU time it takes."""
    rows: list[list[str]] = []
    for work, servers in cells.items():
        ours = {figure: median(values) for figure, values in servers["ours"].items()}
        for name, figures in servers.items():
            rate, cpu = median(figures["rate"]), median(figures["cpu_us"])
            ratio, less = ours["rate"] / rate, cpu / ours["cpu_us"]
            rows.append(
                [f"{work}  {name}", f"{ratio:.2f}", f"{less:.2f}", f"{rate:.0f}", f"{cpu:.1f}"]
            )
    print(table(["", "x ours", "x CPU", "a second", "CPU us"], rows))
    print("a second: requests, for 100 MB megabytes; CPU us: of one of these")


def main() -> int:
    arguments = _arguments()
    cells = run(arguments)
    found = versions("pelotontx", "Twisted") | _peer_versions(arguments.servers)
    print("medians of", arguments.rounds, "rounds of", arguments.seconds, "s;", end=" ")
    print(", ".join(f"{name} {version}" for name, version in found.items()), "\n")
    show(cells)
    save("http_server", {"versions": found, "cells": cells}, arguments.json)
    return 0


def _peer_versions(servers: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if not {"uvicorn", "granian", "aiohttp"}.isdisjoint(servers):
        found |= _package_versions()
    for name, find, option in (("node", lambda: "node", "--version"), ("nginx", _nginx, "-v")):
        if name in servers:
            done = subprocess.run([find(), option], capture_output=True, text=True)
            text = (done.stdout + done.stderr).strip()
            found[name] = text.rpartition("/")[2].removeprefix("v")
    return found


def _package_versions() -> dict[str, str]:
    program = f"from importlib.metadata import version\nfor p in {PEERS}: print(p, version(p))"
    output = subprocess.run([peer_python(*PEERS), "-c", program], capture_output=True, text=True)
    return dict(line.split() for line in output.stdout.splitlines())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--works", nargs="+", metavar="NAME", help="what to measure")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, metavar="NAME", help="beside ours")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 2, at most 60")
    parser.add_argument("--json", metavar="FILE", help="default: build/benchmarks/http_server.json")
    arguments: Any = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.seconds = min(arguments.seconds or (1.0 if arguments.quick else 2.0), 60.0)
    chosen = ["ours", *(arguments.servers or SERVERS[1:])]
    arguments.servers = [name for name in dict.fromkeys(chosen) if name not in arguments.without]
    names = arguments.works or [work.name for work in WORKS]
    arguments.works = [work for work in WORKS if work.name in names]
    return arguments  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())

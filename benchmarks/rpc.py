"""Calls a second, CALL to ACK to RES of `test.echo`: ours beside the original juggler's design.

In one run, interleaved, on one redis-server:

- original: the original's design on Twisted's stock parts (`rpc_original.py`);
- ours: `twistd peloton` and `peloton callee`, as they are, without a limit on a client's rate;
- redis: LPUSH and BRPOP each way with nothing around them (`redis_limit.py`), a limit.

Each has a database of its own on that server: their layouts are the same, and one's callee would
serve another's calls.

Servers have a core of their own; Redis, callees and load share the others. The load checks each
answer; a lost or crossed one, or keys that stay in Redis, end the run with status 1.

    python benchmarks/rpc.py            # about three minutes
    python benchmarks/rpc.py --quick    # some seconds, for a first look and for CI
    python benchmarks/rpc.py --also before=../other-checkout
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hiredis
from support import (
    HERE,
    ROOT,
    Program,
    accepts,
    cores,
    free_port,
    median,
    save,
    script,
    table,
    versions,
)

LOAD_TIMEOUT_S = 60.0
# How long keys may outlive the last call.
EMPTY_WITHIN_S = 2.0

CONFIG = """
[broker]
url = "{url}"
[rpc]
message_rate = 0
"""


class Redis:
    """A redis-server without persistence."""

    def __init__(self, stack: ExitStack, cpus: set[int] | None) -> None:
        self.port = free_port()
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = [
            script("redis-server"),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            folder,
        ]
        program = Program("redis", [*command, "--save", "", "--appendonly", "no"], cpus=cpus)
        stack.enter_context(program).wait_until(accepts(self.port))
        self.pid = program.pid
        self.version = str(
            self.command("INFO", "server").decode().split("redis_version:")[1].split()[0]
        )

    def command(self, *words: str, database: int = 0) -> Any:
        """One command on a connection of its own."""
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            for line in (("SELECT", str(database)), words):
                connection.sendall(hiredis.pack_command(line))
                while (reply := reader.gets()) is False:
                    reader.feed(connection.recv(65536))
        return reply

    def keys_left(self, database: int) -> list[str]:
        """What does not go away soon after the last call; it is deleted."""
        deadline = time.monotonic() + EMPTY_WITHIN_S
        while (keys := self.command("KEYS", "*", database=database)) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        self.command("FLUSHDB", database=database)
        return [key.decode() for key in keys]


class System:
    """A server and a callee."""

    port: int
    path: str

    def __init__(self, redis: Redis, database: int, programs: dict[str, Program]) -> None:
        self.database = database
        self._programs = programs
        self.pids = {name: program.pid for name, program in programs.items()}
        self.pids["redis"] = redis.pid

    def last_lines(self) -> list[str]:
        """What each program said last, for the report of a failure."""
        lines = []
        for name, program in self._programs.items():
            said = program.output().splitlines()
            lines.append(f"{name}, of {len(said)} lines: {said[-1] if said else ''}")
        return lines


class Original(System):
    """The original's design."""

    path = "/"

    def __init__(self, stack: ExitStack, redis: Redis, pinned: bool, *, database: int) -> None:
        server_cpus, other_cpus = cores() if pinned else (None, None)
        self.port = free_port()
        command = [sys.executable, str(HERE / "rpc_original.py")]
        redis_options = ["--redis", str(redis.port), "--database", str(database)]
        server = Program(
            "original server",
            [*command, "server", *redis_options, "--listen", str(self.port)],
            cpus=server_cpus,
        )
        stack.enter_context(server).wait_until(accepts(self.port))
        callee = Program("original callee", [*command, "callee", *redis_options], cpus=other_cpus)
        stack.enter_context(callee)
        super().__init__(redis, database, {"server": server, "callee": callee})


class Ours(System):
    """The real programs, of this checkout or another."""

    path = "/ws"

    def __init__(
        self,
        stack: ExitStack,
        redis: Redis,
        pinned: bool,
        *,
        database: int,
        root: Path,
        concurrency: int | None,
    ) -> None:
        server_cpus, other_cpus = cores() if pinned else (None, None)
        self.port = free_port()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "peloton.toml"
        url = f"redis://127.0.0.1:{redis.port}/{database}"
        config.write_text(CONFIG.format(url=url))
        environ = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
            "PELOTON_BROKER__URL": url,
        }
        command = [script("twistd"), "-n", "--pidfile=", "peloton", "--config", str(config)]
        listen = ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
        server = Program(
            "peloton", [*command, *listen], cpus=server_cpus, environ=environ, folder=root
        )
        stack.enter_context(server).wait_until(self._is_healthy)
        callee = Program(
            "peloton callee",
            [
                *(sys.executable, "-m", "pelotontx", "callee", "pelotontx.demo.callee:callee"),
                *(() if concurrency is None else ("--concurrency", str(concurrency))),
            ],
            cpus=other_cpus,
            environ=environ,
            folder=root,  # first in its path
        )
        stack.enter_context(callee)
        super().__init__(redis, database, {"server": server, "callee": callee})

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as page:
                return bool(json.load(page)["broker"]["available"])
        except OSError:
            return False


class Limit:
    """Redis alone."""

    def __init__(self, stack: ExitStack, redis: Redis, pinned: bool) -> None:
        self._redis = redis
        self._server_cpus, other_cpus = cores() if pinned else (None, None)
        self._command = [sys.executable, str(HERE / "redis_limit.py")]
        command = [*self._command, "echo", "--redis", str(redis.port)]
        stack.enter_context(Program("redis limit", command, cpus=other_cpus))

    def measure(self, clients: int, in_flight: int, seconds: float) -> dict[str, Any]:
        command = [*self._command, "call", "--redis", str(self._redis.port)]
        options = ["--in-flight", str(clients * in_flight), "--seconds", str(seconds)]
        with Program("redis limit", [*command, *options], cpus=self._server_cpus) as caller:
            figures: dict[str, Any] = json.loads(caller.wait(LOAD_TIMEOUT_S))
        return {**figures, "problems": []}


def measure(
    system: System, redis: Redis, cell: tuple[int, int], seconds: float, pinned: bool
) -> dict[str, Any]:
    """One round of one system in one cell: N clients with M calls in flight."""
    command = [sys.executable, str(HERE / "rpc_load.py"), str(system.port), system.path]
    options = ["--clients", str(cell[0]), "--in-flight", str(cell[1]), "--seconds", str(seconds)]
    for name, pid in system.pids.items():
        options += ["--watch", f"{name}={pid}"]
    load = Program("load", [*command, *options], cpus=cores()[1] if pinned else None)
    with load:
        try:
            figures: dict[str, Any] = json.loads(load.wait(LOAD_TIMEOUT_S))
            problems = []
        except RuntimeError as error:
            figures = _figures_of_failed(load.output())
            problems = [_wrong(figures) or str(error), *system.last_lines()]
    keys = redis.keys_left(system.database)
    if keys:
        problems.append(f"{len(keys)} keys stay in Redis: {keys[:3]}")
    return {**figures, "problems": problems}


def _wrong(figures: dict[str, Any]) -> str:
    names = ("sent", "lost", "crossed", "unknown", "nacks")
    return ", ".join(f"{figures[name]} {name}" for name in names if name in figures)


def _figures_of_failed(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    figures: dict[str, Any] = {
        name: median(one[name] for one in rounds if name in one)
        for name in ("rate", "p50_ms", "p99_ms")
    }
    for group in ("cpu_us", "cpu_share"):
        figures[group] = {
            name: median(one[group][name] for one in rounds if group in one)
            for name in next((one[group] for one in rounds if group in one), {})
        }
    for name in ("lost", "crossed", "unknown", "nacks", "results_before_ack"):
        figures[name] = sum(one.get(name, 0) for one in rounds)
    figures["rounds"] = [round(one.get("rate", 0.0), 1) for one in rounds]
    figures["problems"] = [problem for one in rounds for problem in one["problems"]]
    return figures


def run(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    """All rounds; returns the figures by cell and system."""
    pinned = arguments.pin
    redis = Redis(stack, cores()[1] if pinned else None)
    systems: dict[str, Any] = {
        "redis": Limit(stack, redis, pinned),
        "original": Original(stack, redis, pinned, database=1),
    }
    for database, (name, root) in enumerate([*arguments.also, ("ours", str(ROOT))], 2):
        systems[name] = Ours(
            stack,
            redis,
            pinned,
            database=database,
            root=Path(root).resolve(),
            concurrency=arguments.concurrency,
        )

    measured: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = {}
    order = [name for name in systems if name not in arguments.without]
    for number in range(arguments.rounds):
        for cell in arguments.cells:
            by_system = measured.setdefault(cell, defaultdict(list))
            # Alternating, so that nobody always runs after the same neighbour.
            for name in order if number % 2 == 0 else reversed(order):
                system = systems[name]
                if isinstance(system, Limit):
                    figures = system.measure(*cell, arguments.seconds / 2)
                else:
                    figures = measure(system, redis, cell, arguments.seconds, pinned)
                by_system[name].append(figures)
                _progress(number, cell, name, figures)
    return {
        "redis": redis.version,
        "cells": [
            {
                "clients": cell[0],
                "in_flight": cell[1],
                "systems": {name: summary(rounds) for name, rounds in by_system.items()},
            }
            for cell, by_system in measured.items()
        ],
    }


def _progress(number: int, cell: tuple[int, int], name: str, figures: dict[str, Any]) -> None:
    print(
        f"round {number + 1}: {cell[0]} x {cell[1]} {name}: {figures.get('rate', 0):.0f}/s",
        file=sys.stderr,
    )
    for problem in figures["problems"]:
        print(f"  {problem}", file=sys.stderr)


def show(cells: list[dict[str, Any]]) -> None:
    """The table: ratios first; the second is the original's CPU time a call over this one's."""
    head = ("clients x in flight", "", "ratio", "1/CPU", "calls/s", "p50 ms", "p99 ms")
    cpu_names = ("server", "callee", "redis", "load")
    rows = []
    for cell in cells:
        label = f"{cell['clients']} x {cell['in_flight']}"
        base = cell["systems"].get("original")
        for name, figures in cell["systems"].items():
            cpus = figures["cpu_us"]
            ratio = f"{figures['rate'] / base['rate']:.2f}" if base and base["rate"] else "-"
            times = [f"{figures[key]:.2f}" for key in ("p50_ms", "p99_ms")]
            cpu_ratio = f"{_cpu_us(base) / _cpu_us(figures):.2f}" if base and cpus else "-"
            columns = [f"{cpus[key]:.1f}" if cpus else "-" for key in cpu_names]
            columns.append(f"{_cpu_us(figures):.1f}" if cpus else "-")
            columns.append(f"{figures['cpu_share']['server']:.0%}" if cpus else "-")
            rows.append((label, name, ratio, cpu_ratio, f"{figures['rate']:.0f}", *times, *columns))
            label = ""
    cpu_head = [f"{name} µs" for name in cpu_names]
    print(table([*head, *cpu_head, "all but load µs", "server busy"], rows))


def _cpu_us(figures: dict[str, Any]) -> float:
    """CPU time of a call in server, callee and Redis."""
    cpus: dict[str, float] = figures["cpu_us"]
    return sum(cpus[name] for name in ("server", "callee", "redis"))


def main() -> int:
    arguments = _arguments()
    with ExitStack() as stack:
        figures = run(arguments, stack)
    packages = ("pelotontx", "Twisted", "autobahn", "txredisapi", "hiredis", "msgspec")
    figures["versions"] = {**versions(*packages), "redis": figures.pop("redis")}
    figures["pinned"] = arguments.pin
    print("medians of", arguments.rounds, "rounds of", arguments.seconds, "s;", end=" ")
    print(", ".join(f"{name} {found}" for name, found in figures["versions"].items()), "\n")
    show(figures["cells"])
    save("rpc", figures, arguments.json)
    problems = [
        f"{cell['clients']} x {cell['in_flight']} {name}: {problem}"
        for cell in figures["cells"]
        for name, system in cell["systems"].items()
        for problem in system["problems"]
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round of three cells")
    parser.add_argument("--cells", type=_cell, nargs="+", metavar="NxM", help="clients x in flight")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 3, at most 60")
    parser.add_argument("--concurrency", type=int, help="of our callee; default: its own")
    parser.add_argument("--also", type=_named, action="append", default=[], metavar="NAME=CHECKOUT")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="any core for anybody")
    parser.add_argument("--json", metavar="FILE", help="default: build/benchmarks/rpc.json")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.seconds = min(arguments.seconds or (0.4 if quick else 3.0), LOAD_TIMEOUT_S / 2)
    if arguments.cells is None:
        full = [(1, 1), *((clients, calls) for clients in (10, 100, 500) for calls in (1, 8))]
        arguments.cells = [(1, 1), (10, 1), (10, 8)] if quick else full
    return arguments


def _cell(text: str) -> tuple[int, int]:
    clients, _, in_flight = text.partition("x")
    return int(clients), int(in_flight)


def _named(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    return name, path


if __name__ == "__main__":
    sys.exit(main())

"""Events to many: ours beside `websockets` and aiohttp.

In one run, interleaved: one publisher, 1000 and 5000 subscribers, one and four events in flight.

- websockets: a server that passes on what one connection sends, by the library's `broadcast`;
- aiohttp: the same by a loop over the connections;
- ours: `twistd peloton` as it is, a PUB through the hub to SUBscribed sessions, with the broker in
  its process, since the peers have none either;
- ours+redis: the same with a redis-server between.

The server has a core of its own, load and Redis share the others. Every subscriber checks that it
gets all events in order; otherwise the run ends with status 1.

Claims: at least 1.4 times `websockets` with one event in flight and 4 times with four.

    python benchmarks/fanout.py            # about three minutes
    python benchmarks/fanout.py --quick    # some seconds, for a first look and for CI
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support import (
    HERE,
    ROOT,
    Program,
    accepts,
    cores,
    free_port,
    median,
    peer_python,
    save,
    script,
    table,
    versions,
)

LOAD_TIMEOUT_S = 120.0
PEERS = ("websockets", "aiohttp")
SYSTEMS = (*PEERS, "ours", "ours+redis")

CONFIG = """
[broker]
url = "{url}"
[rpc]
message_rate = 0
"""


class System:
    """One server that runs."""

    def __init__(self, stack: ExitStack, name: str) -> None:
        self.port = free_port()
        self.path, self.protocol = "/", "plain"
        if name in PEERS:
            command = [peer_python(name), str(HERE / "fanout_peers.py"), name, str(self.port)]
            program = Program(name, command, cpus=cores()[0])
        else:
            self.path, self.protocol = "/ws", "juggler"
            url = "memory:" if name == "ours" else _redis(stack)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / "peloton.toml").write_text(CONFIG.format(url=url))
            command = [script("twistd"), "-n", "--pidfile=", "peloton"]
            command += ["--config", str(folder / "peloton.toml")]
            command += ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
            program = Program(
                name, command, cpus=cores()[0], environ={"PYTHONPATH": str(ROOT)}, folder=ROOT
            )
        stack.enter_context(program).wait_until(accepts(self.port))
        self.pid = program.pid

    def measure(self, subscribers: int, in_flight: int, seconds: float) -> dict[str, Any]:
        """One round."""
        command = [sys.executable, str(HERE / "fanout_load.py"), str(self.port), self.path]
        options = {
            "protocol": self.protocol,
            "subscribers": subscribers,
            "in-flight": in_flight,
            "seconds": seconds,
            "pid": self.pid,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with Program("load", [*command, *words], cpus=cores()[1]) as load:
            figures: dict[str, Any] = json.loads(load.wait(LOAD_TIMEOUT_S))
        return figures


def _redis(stack: ExitStack) -> str:
    port = free_port()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    options = f"--port {port} --bind 127.0.0.1 --dir {folder} --appendonly no --save".split()
    program = Program("redis", [script("redis-server"), *options, ""], cpus=cores()[1])
    stack.enter_context(program).wait_until(accepts(port))
    return f"redis://127.0.0.1:{port}"


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds; medians by cell and system."""
    rounds: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = {}
    with ExitStack() as stack:
        systems = {name: System(stack, name) for name in SYSTEMS if name not in arguments.without}
        for number in range(arguments.rounds):
            for cell in arguments.cells:
                for name, system in systems.items():
                    figures = system.measure(*cell, arguments.seconds)
                    rounds.setdefault(cell, {}).setdefault(name, []).append(figures)
                    shown = f"round {number + 1}: {cell[0]} x {cell[1]} {name}"
                    print(f"{shown}: {figures['rate']:.0f}/s", file=sys.stderr)
    return [
        {
            "subscribers": cell[0],
            "in_flight": cell[1],
            "systems": {
                name: {key: median(one[key] for one in measured) for key in measured[0]}
                for name, measured in by_name.items()
            },
        }
        for cell, by_name in rounds.items()
    ]


def show(cells: list[dict[str, Any]]) -> None:
    """The table: ratios to `websockets` first."""
    head = ("subscribers x in flight", "", "ratio", "1/CPU", "deliveries/s", "CPU \u00b5s each")
    rows = []
    for cell in cells:
        label = f"{cell['subscribers']} x {cell['in_flight']}"
        base = cell["systems"].get("websockets")
        for name, figures in cell["systems"].items():
            ratio = f"{figures['rate'] / base['rate']:.2f}" if base else "-"
            cpu = f"{base['cpu_us'] / figures['cpu_us']:.2f}" if base else "-"
            times = [f"{figures[key]:.1f}" for key in ("p50_ms", "p99_ms")]
            shares = (f"{figures['cpu_us']:.2f}", f"{figures['cpu_share']:.0%}")
            rows.append((label, name, ratio, cpu, f"{figures['rate']:.0f}", *shares, *times))
            label = ""
    print(table([*head, "server busy", "p50 ms", "p99 ms"], rows))


def main() -> int:
    arguments = _arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cells = run(arguments)
    found = versions("pelotontx", "Twisted", *PEERS)
    print("medians of", arguments.rounds, "rounds of", arguments.seconds, "s;", end=" ")
    print(", ".join(f"{name} {version}" for name, version in found.items()), "\n")
    show(cells)
    save("fanout", {"versions": found, "cells": cells}, arguments.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round of one cell")
    parser.add_argument("--cells", type=_cell, nargs="+", metavar="NxM", help="what to measure")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 3, at most 60")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out")
    parser.add_argument("--json", metavar="FILE", help="default: build/benchmarks/fanout.json")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.seconds = min(arguments.seconds or (0.5 if quick else 3.0), 60.0)
    if arguments.cells is None:
        full = [(1000, 1), (1000, 4), (5000, 1), (5000, 4)]
        arguments.cells = [(200, 1), (200, 4)] if quick else full
    return arguments


def _cell(text: str) -> tuple[int, int]:
    subscribers, _, in_flight = text.partition("x")
    return int(subscribers), int(in_flight)


if __name__ == "__main__":
    sys.exit(main())

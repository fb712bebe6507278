"""The benchmarks run; what they measure is nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import redis_binary, system_binary

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    redis_binary()
    path = tmp_path_factory.mktemp("rpc") / "rpc.json"
    done = run("rpc.py", "--quick", "--seconds", "0.2", "--cells", "3x2", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clients x in flight" in done.stdout
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def test_rpc_measures_three_systems_side_by_side(rpc: dict[str, Any]) -> None:
    (cell,) = rpc["cells"]
    assert (cell["clients"], cell["in_flight"]) == (3, 2)
    assert set(cell["systems"]) == {"original", "ours", "redis"}
    assert all(system["rate"] > 0 for system in cell["systems"].values())


def test_rpc_loses_and_crosses_no_call_and_leaves_redis_empty(rpc: dict[str, Any]) -> None:
    for name in ("original", "ours"):
        system = rpc["cells"][0]["systems"][name]
        wrong = ("lost", "crossed", "unknown", "nacks", "problems")
        assert [system[key] for key in wrong] == [0, 0, 0, 0, []]
    assert rpc["cells"][0]["systems"]["ours"]["results_before_ack"] == 0


def test_rpc_names_the_versions_that_its_figures_belong_to(rpc: dict[str, Any]) -> None:
    assert {"python", "kernel", "pelotontx", "Twisted", "redis"} <= rpc["versions"].keys()


def test_fanout_delivers_every_event_to_every_subscriber(tmp_path: Path) -> None:
    path = tmp_path / "fanout.json"
    done = run(
        *("fanout.py", "--quick", "--seconds", "0.2", "--cells", "60x2", "--json", str(path)),
        *("--without", "aiohttp"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(path.read_text())["cells"]
    assert set(cell["systems"]) == {"websockets", "ours", "ours+redis"}
    for system in cell["systems"].values():
        assert (system["lost"], system["wrong"]) == (0, 0)
        assert system["deliveries"] > 0


def test_http_server_asks_every_server_for_the_same(tmp_path: Path) -> None:
    system_binary("wrk")
    path = tmp_path / "http.json"
    done = run(
        *("http_server.py", "--quick", "--servers", "twisted.web", "--json", str(path)),
        *("--works", "hello", "routed", "10 KB"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(path.read_text())["cells"]
    assert set(cells) == {"hello", "routed", "10 KB"}
    for servers in cells.values():
        assert set(servers) == {"ours", "twisted.web"}
        assert all(figures["rate"][0] > 0 for figures in servers.values())


def test_http_memory_measures_without_sockets(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    done = run("http_memory.py", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())["us"]
    assert set(figures) == {"one", "pipelined", "alternating", "long heads"}
    assert all(us > 0 for us in figures.values())


def test_upload_measures_memory_and_stalls(tmp_path: Path) -> None:
    path = tmp_path / "upload.json"
    peers = ("--without", "starlette", "--without", "twisted.web")
    done = run("upload.py", "--mib", "2", "--rounds", "1", *peers, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    medians = json.loads(path.read_text())["medians"]
    assert set(medians) == {"ours", "ours, stored"}
    assert all(system["mib_s"] > 0 for system in medians.values())


def test_gateway_compares_hooks_and_middlewares_with_none(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    done = run("gateway.py", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())["microseconds"]
    assert set(figures) == {"none", "one hook", "one middleware", "four middlewares"}
    assert all(us > 0 for kind in figures.values() for us in kind.values())

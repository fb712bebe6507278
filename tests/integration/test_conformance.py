"""Autobahn's conformance cases, driven by kosoku, against an echo in the real server.

In its production profile: groups 1 to 7 and 10, whose messages are within the limits. In the
conformance profile (tests/support/conformance.toml): some of 9 (large messages) and of 12 and 13
(permessage-deflate), and with ``PELOTON_CONFORMANCE=all`` every case there is. What the production
profile does with messages past its limits is in test_websocket_faults.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.net.process import ChildProcess
from tests.support.programs import PelotonServer

ROOT = Path(__file__).parents[2]
CONFORMANCE = (ROOT / "tests/support/conformance.toml").read_text()
PRODUCTION = '[web]\napp = "tests.support.echo:app"\n[broker]\nurl = "memory:"\n'

PROTOCOL = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
ALL = [*PROTOCOL, "9.*", "12.*", "13.*"]
#: One of each kind: long messages whole, in fragments and in pieces; compressed ones of several
#: lengths, and each of the offers.
SHORT = [
    *("9.1.1", "9.2.1", "9.3.9", "9.4.9", "9.5.6", "9.7.1", "9.8.1"),
    *(f"12.{group}.{case}" for group in range(1, 6) for case in (1, 6)),
    *(f"13.{group}.{case}" for group in range(1, 8) for case in (1, 6)),
]

#: What RFC 6455 leaves open: a close behind much data, and close codes above 4999.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

slow = pytest.mark.skipif(
    os.environ.get("PELOTON_CONFORMANCE") != "all", reason="PELOTON_CONFORMANCE=all is not set"
)

Start = Callable[[str], Any]


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a server with this configuration."""
    servers: list[PelotonServer] = []

    async def start(configuration: str) -> str:
        (tmp_path / "peloton.toml").write_text(configuration)
        server = PelotonServer(
            reactor,
            *("--config", "peloton.toml"),
            folder=tmp_path,
            environ={"PYTHONPATH": str(ROOT)},
        )
        servers.append(server)
        await server.start()
        return f"ws://127.0.0.1:{server.port}/echo"

    yield start
    for server in servers:
        assert server.child.pid is not None, server.output
        await server.stop()
        assert "Traceback" not in server.output, server.output


async def run(address: str, cases: list[str]) -> list[dict[str, str]]:
    """The results of all these cases."""
    lines: list[str] = []
    child = ChildProcess(
        reactor,
        [sys.executable, "-m", "tests.support.fuzzing", address, *cases],
        name="fuzzing",
        on_line=lines.append,
        death_signal=signal.SIGKILL,
    )
    child.start()
    status = await child.exited
    assert status.code == 0, (status, lines[-5:])
    return [json.loads(line) for line in lines if line.startswith("{")]


def offenders(results: list[dict[str, str]]) -> dict[str, str]:
    """The cases that are not as they should be, each with its verdict and the reason."""
    return {
        result["case"]: f"{result['verdict']}: {result['reason']}"
        for result in results
        if result["verdict"] != "OK"
        and not (result["verdict"] == "INFORMATIONAL" and result["case"] in INFORMATIONAL)
    }


def counts(results: list[dict[str, str]]) -> dict[str, int]:
    return dict(Counter(result["verdict"] for result in results))


@pytest_twisted.ensureDeferred
async def test_every_protocol_case_passes_strictly_in_production(start: Start) -> None:
    results = await run(await start(PRODUCTION), PROTOCOL)
    assert offenders(results) == {}
    assert counts(results) == {"OK": 244, "INFORMATIONAL": 3}


@pytest_twisted.ensureDeferred
async def test_large_and_compressed_messages_pass_strictly(start: Start) -> None:
    results = await run(await start(CONFORMANCE), SHORT)
    assert offenders(results) == {}
    assert counts(results) == {"OK": len(SHORT)}


@slow
@pytest_twisted.ensureDeferred
async def test_every_case_passes_strictly(start: Start) -> None:
    results = await run(await start(CONFORMANCE), ALL)
    assert offenders(results) == {}
    assert counts(results) == {"OK": 514, "INFORMATIONAL": 3}

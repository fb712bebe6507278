"""Autobahn's conformance cases, driven by kosoku, against our echo server in a process of its own.

Groups 1 to 7 and 10 always; with ``PELOTON_CONFORMANCE=all`` also 9 (large messages) and 12 and 13
(permessage-deflate, which is off: unimplemented, and that is all that may be).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.net.process import ChildProcess
from tests.support.servers import eventually

PROTOCOL = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
LIMITS = ["9.*"]
DEFLATE = ["12.*", "13.*"]

#: What RFC 6455 leaves open: a close behind much data, and close codes above 4999.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

slow = pytest.mark.skipif(
    os.environ.get("PELOTON_CONFORMANCE") != "all", reason="PELOTON_CONFORMANCE=all is not set"
)


@pytest_twisted.async_yield_fixture
async def address() -> AsyncIterator[str]:
    """A running echo server's."""
    lines: list[str] = []
    child = ChildProcess(
        reactor,
        [sys.executable, "-m", "tests.support.echo", "0"],
        name="echo",
        on_line=lines.append,
        death_signal=signal.SIGKILL,
    )
    child.start()
    await eventually(reactor, lambda: lines or child.pid is None)
    assert lines, "the echo server did not start"
    assert lines[0].startswith("listening on "), lines
    yield f"ws://127.0.0.1:{lines[0].split()[-1]}"
    assert child.pid is not None, lines
    assert lines[1:] == []
    await child.stop(timeout_s=5)


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


def offenders(results: list[dict[str, str]], *accepted: str) -> dict[str, str]:
    """The cases that are not as they should be, each with its verdict and the reason."""
    return {
        result["case"]: f"{result['verdict']}: {result['reason']}"
        for result in results
        if result["verdict"] not in accepted
        and not (result["verdict"] == "INFORMATIONAL" and result["case"] in INFORMATIONAL)
    }


def counts(results: list[dict[str, str]]) -> dict[str, int]:
    return dict(Counter(result["verdict"] for result in results))


@pytest_twisted.ensureDeferred
async def test_every_protocol_case_passes_strictly(address: str) -> None:
    results = await run(address, PROTOCOL)
    assert offenders(results, "OK") == {}
    assert counts(results) == {"OK": 244, "INFORMATIONAL": 3}


@slow
@pytest_twisted.ensureDeferred
async def test_large_messages_pass_strictly(address: str) -> None:
    results = await run(address, LIMITS)
    assert offenders(results, "OK") == {}
    assert counts(results) == {"OK": 54}


@slow
@pytest_twisted.ensureDeferred
async def test_deflate_is_declined_and_nothing_worse(address: str) -> None:
    results = await run(address, DEFLATE)
    assert offenders(results, "UNIMPLEMENTED and OK") == {}
    assert counts(results) == {"UNIMPLEMENTED and OK": 216}

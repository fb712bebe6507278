"""Autobahn's conformance cases, driven by kosoku, against our echo server in a process of its own.

Groups 1 to 7 and 10 always; with ``PELOTON_CONFORMANCE=all`` also 9 (large messages) and 12 and 13
(permessage-deflate, which is off: unimplemented, and that is all that may be).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import kosoku
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from pelotontx.net.process import ChildProcess
from tests.support.servers import eventually

PROTOCOL = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
LIMITS = ["9.*"]
DEFLATE = ["12.*", "13.*"]

#: What RFC 6455 leaves open: a close behind much data, and close codes above 4999.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

AT_ONCE = 16

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


async def run(address: str, cases: list[str]) -> list[Any]:
    """The results of all these cases."""
    return await deferToThread(asyncio.run, _run(address, cases))


async def _run(address: str, cases: list[str]) -> list[Any]:
    try:
        return list(await kosoku.run_fuzzingclient(address, cases, concurrency=AT_ONCE))
    except kosoku.FailureError as failure:
        return list(failure.results)


def verdict(result: Any) -> str:
    """Of the messages, and of the closing handshake if it is another one."""
    values = (result.behavior.value, result.behavior_close.value)
    return " and ".join(dict.fromkeys(values))


def offenders(results: list[Any], *accepted: str) -> dict[str, str]:
    """The cases that are not as they should be, each with its verdict and the reason."""
    return {
        result.case_id: f"{verdict(result)}: {result.result} {result.result_close}"
        for result in results
        if verdict(result) not in accepted
        and not (verdict(result) == "INFORMATIONAL" and result.case_id in INFORMATIONAL)
    }


def counts(results: list[Any]) -> dict[str, int]:
    return dict(Counter(map(verdict, results)))


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
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # kosoku's
@pytest_twisted.ensureDeferred
async def test_deflate_is_declined_and_nothing_worse(address: str) -> None:
    results = await run(address, DEFLATE)
    assert offenders(results, "UNIMPLEMENTED and OK") == {}
    assert counts(results) == {"UNIMPLEMENTED and OK": 216}

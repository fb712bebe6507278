"""Runs Autobahn's conformance cases by kosoku and prints each result as a line of JSON.

    python -m tests.support.fuzzing ws://127.0.0.1:PORT '1.*' '2.*' ...

A program of its own, since kosoku brings a package of Autobahn's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import kosoku

# Cases at once: the machine's time is for the server under test.
AT_ONCE = 16


async def run(address: str, cases: list[str]) -> list[Any]:
    """The results of all these cases, failed ones too."""
    try:
        return list(await kosoku.run_fuzzingclient(address, cases, concurrency=AT_ONCE))
    except kosoku.FailureError as failure:
        return list(failure.results)


if __name__ == "__main__":
    for result in asyncio.run(run(sys.argv[1], sys.argv[2:])):
        values = (result.behavior.value, result.behavior_close.value)
        print(
            json.dumps(
                {
                    "case": result.case_id,
                    # Of the messages, and of the closing handshake if it is another one.
                    "verdict": " and ".join(dict.fromkeys(values)),
                    "reason": f"{result.result} {result.result_close}",
                }
            ),
            flush=True,
        )
    # Not by way of the interpreter's end: kosoku's threads may still be running Python then, and
    # abort the process.
    os._exit(0)

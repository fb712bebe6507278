"""The original's callee: test.echo, test.reverse and test.delay, a blocking connection each.

    python -m tests.support.original.callee --redis PORT [--uri URI ...] [--executions FILE]

Prints "serving" when it does. With `--executions` the id of each call that it runs is a line in
that file.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.original.redis import Redis, RedisError


def echo(args: Any) -> Any:
    return text(args)


def reverse(args: Any) -> str:
    return text(args)[::-1]


def delay(args: Any) -> int:
    ms = int(text(args))
    time.sleep(ms / 1000)
    return ms


def text(args: Any) -> str:
    if not isinstance(args, str):
        raise TypeError("json: cannot unmarshal into a string")
    return args


FUNCTIONS = {"test.echo": echo, "test.reverse": reverse, "test.delay": delay}


class Callee:
    """Serves some URIs of one Redis."""

    def __init__(self, port: int, result_cap: int, executions: str | None) -> None:
        self._port = port
        self._commands = Redis(port)
        self._result_cap = result_cap
        self._executions = -1
        if executions is not None:
            self._executions = os.open(executions, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def listen(self, uri: str, function: Callable[[Any], Any]) -> None:
        """Takes calls for ever; each runs in a thread of its own."""
        blocking = Redis(self._port)
        while True:
            call = blocking.pop("calls", uri)
            left_ms = self._commands.time_left_ms("calls", uri, call["msg_uuid"])
            if left_ms > 0:
                ends_s = time.monotonic() + left_ms / 1000
                work = (call, function, ends_s)
                threading.Thread(target=self._run, args=work, daemon=True).start()

    def _run(self, call: dict[str, Any], function: Callable[[Any], Any], ends_s: float) -> None:
        if self._executions != -1:
            os.write(self._executions, call["msg_uuid"].encode() + b"\n")
        try:
            result = function(call.get("args"))
        except (TypeError, ValueError) as error:
            result = {"error": {"message": str(error)}}
        left_ms = int((ends_s - time.monotonic()) * 1000)
        if left_ms > 0:
            entry = {name: call[name] for name in ("conn_uuid", "msg_uuid", "uri")}
            entry["args"] = result
            try:
                self._commands.store("results", call["conn_uuid"], entry, left_ms, self._result_cap)
            except RedisError as error:
                print(f"a result was not stored: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, required=True)
    parser.add_argument("--uri", action="append", choices=FUNCTIONS)
    parser.add_argument("--result-cap", type=int, default=0)
    parser.add_argument("--executions")
    options = parser.parse_args()
    callee = Callee(options.redis, options.result_cap, options.executions)
    for uri in options.uri or FUNCTIONS:
        listener = threading.Thread(target=callee.listen, args=(uri, FUNCTIONS[uri]))
        listener.start()
    print("serving", flush=True)


if __name__ == "__main__":
    sys.exit(main())

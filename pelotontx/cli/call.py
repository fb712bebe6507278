"""`peloton call`: one call, its result on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import msgspec

from pelotontx.cli.running import run_main
from pelotontx.cli.texts import printable, with_hint
from pelotontx.client import Client
from pelotontx.errors import Disconnected, LocalProtocolError, PelotonError
from pelotontx.net import reactor as peloton_reactor


def run(uri: str, text: str, *, url: str, timeout_s: float, raw: bool) -> int:
    """Calls `uri`; the result goes to stdout, an error to stderr.

    Args:
        uri: the function.
        text: its argument as JSON; ``-`` reads it from stdin.
        url: the server's WebSocket.
        timeout_s: for connecting and calling together.
        raw: the result on one line, with nothing added.

    Returns:
        the exit status.
    """
    try:
        args = read_json(text, sys.stdin)
    except LocalProtocolError as error:
        return _failed(error)
    reactor = peloton_reactor.install()
    return run_main(reactor, lambda: _call(reactor, uri, args, url, timeout_s, raw))


def read_json(text: str, stdin: TextIO) -> Any:
    """Decodes an argument of the command line.

    Raises:
        LocalProtocolError: it is not JSON; the message says how to quote it.
    """
    from_stdin = text == "-"
    if from_stdin:
        text = stdin.read()
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        where = "stdin" if from_stdin else f"the argument {text!r}"
        hint = "" if from_stdin else _hint(text)
        raise LocalProtocolError(f"{where} is not JSON: {error}{hint}") from None


def _hint(text: str) -> str:
    if text[:1] in ("{", "["):
        return "\nhint: the shell takes double quotes away; put single quotes around the JSON"
    return f"\nhint: a string needs quotes of its own: '{json.dumps(text)}'"


async def _call(reactor: Any, uri: str, args: Any, url: str, timeout_s: float, raw: bool) -> int:
    try:
        client = Client(url, reactor=reactor)
        try:
            await client.connect(retry=False).addTimeout(timeout_s, reactor)
            result = await client.call(uri, args, timeout_s=timeout_s)
        finally:
            await client.close()
    except Disconnected as error:
        return _failed(with_hint(error))
    except PelotonError as error:
        return _failed(printable(str(error)))
    except TimeoutError:
        return _failed("no connection in time")
    encoded = msgspec.json.encode(result)
    print((encoded if raw else msgspec.json.format(encoded)).decode())
    return 0


def _failed(error: object) -> int:
    print(f"peloton call: {error}", file=sys.stderr)
    return 1

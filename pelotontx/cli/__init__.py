"""The `peloton` command: one subcommand each module of this package, imported when it is asked for.

Exit statuses: 0 done, 1 failed, 2 a command line that is not understood (`load`: also no
connection), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, TypeAlias

from pelotontx import __version__
from pelotontx.cli.load import options as load_options
from pelotontx.config import parse_duration
from pelotontx.errors import LocalProtocolError

_URL: Final = "ws://127.0.0.1:8080/ws"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status; 1 when nobody reads the output any more.

    Raises:
        SystemExit: for ``--help``, ``--version`` and wrong usage.
    """
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:  # as of `peloton ... | head`
        _discard_output()
        return 1
    return status


def _discard_output() -> None:
    """Lets Python's last flush succeed, which would tell of an error and change the status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peloton",
        description="Call, listen to, serve and check a pelotontx server.",
        epilog="The server itself is started with: twistd -n peloton [--config FILE]",
    )
    parser.add_argument("--version", action="version", version=f"pelotontx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_call(commands)
    _add_client(commands)
    _add_callee(commands)
    _add_load(commands)
    _add_configuration(commands)
    return parser


# argparse gives this class no public name.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_call(commands: _Commands) -> None:
    parser = commands.add_parser(
        "call",
        help="call one function and print its result",
        description="Calls a function and prints its result as JSON. Exit status 1 when it fails, "
        "is refused, or does not answer in time.",
        epilog='example: peloton call test.echo \'{"text": "hi"}\'',
    )
    parser.add_argument("uri", metavar="URI", help="the function's name")
    parser.add_argument(
        "json", metavar="JSON", nargs="?", default="null", help="its argument; - reads stdin"
    )
    _add_url(parser)
    parser.add_argument(
        "--timeout", metavar="TIME", type=_duration, default="60s", help="5s, 500ms (default 60s)"
    )
    parser.add_argument("--raw", action="store_true", help="print the result on one line")
    parser.set_defaults(run=_call)


def _call(options: argparse.Namespace) -> int:
    from pelotontx.cli import call

    return call.run(
        options.uri, options.json, url=options.url, timeout_s=options.timeout, raw=options.raw
    )


def _add_client(commands: _Commands) -> None:
    parser = commands.add_parser(
        "client",
        help="talk to servers interactively",
        description="Opens connections, calls, publishes and subscribes, and prints what the "
        "servers send; the command help lists the commands. Without a terminal it reads commands "
        "from stdin, waits for the answer to each, and ends with status 1 when one of them failed.",
    )
    parser.add_argument(
        "--url", metavar="URL", help=f"connect here at once (what connect opens: {_URL})"
    )
    parser.add_argument("--timestamp", action="store_true", help="put the time before each line")
    parser.add_argument("--raw", action="store_true", help="print messages as they were received")
    parser.set_defaults(run=_client)


def _client(options: argparse.Namespace) -> int:
    from pelotontx.cli import terminal

    return terminal.run(
        options.url or _URL,
        connects=options.url is not None,
        raw=options.raw,
        timestamp=options.timestamp,
    )


def _add_callee(commands: _Commands) -> None:
    parser = commands.add_parser(
        "callee",
        help="serve functions",
        description="Serves the functions of a pelotontx.backend.callee.Callee until SIGTERM or "
        "SIGINT; those that run then may finish. Modules are also looked for in the working "
        "directory.",
        epilog="example: peloton callee shop.rpc:callee --broker redis://127.0.0.1:6379",
    )
    parser.add_argument("object", metavar="MODULE:OBJECT", help="where the Callee is")
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="default: PELOTON_BROKER__URL, which no other user can read, else "
        "redis://127.0.0.1:6379",
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=_positive, default=256, help="at once (default 256)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_positive,
        default=8,
        help="threads for plain functions, which may block (default 8)",
    )
    parser.set_defaults(run=_callee)


def _callee(options: argparse.Namespace) -> int:
    from pelotontx.cli import callee

    return callee.run(
        options.object,
        broker_url=options.broker,
        concurrency=options.concurrency,
        threads=options.threads,
    )


def _add_load(commands: _Commands) -> None:
    parser = commands.add_parser("load", help="put a server under load and count every answer")
    load_options.add_arguments(parser)
    parser.set_defaults(run=_load)


def _load(options: argparse.Namespace) -> int:
    from pelotontx.cli.load import command

    try:
        plan = load_options.plan_from(options)
    except LocalProtocolError as error:
        print(f"peloton load: {error}", file=sys.stderr)
        return 2
    return command.run(plan)


def _add_configuration(commands: _Commands) -> None:
    parser = commands.add_parser(
        "check-config",
        help="check a configuration file",
        description="Reads a configuration as the server would, environment included, and names "
        "what is wrong with it. The modules of its dotted names are not imported: the server does "
        "that when it starts. Exit status 0 when it can be used.",
    )
    parser.add_argument("file", metavar="FILE", help="a TOML file")
    parser.set_defaults(run=_check_config)
    parser = commands.add_parser(
        "default-config",
        help="print every setting with its default",
        description="Prints a configuration file that holds every setting with its default.",
    )
    parser.set_defaults(run=_default_config)


def _check_config(options: argparse.Namespace) -> int:
    from pelotontx.cli import config

    return config.check_config(options.file)


def _default_config(_: argparse.Namespace) -> int:
    from pelotontx.cli import config

    return config.default_config()


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", metavar="URL", default=_URL, help=f"the server's WebSocket (default {_URL})"
    )


def _duration(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 5s, 500ms or 2m")
    if seconds < 0.001:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1ms")
    return seconds


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)

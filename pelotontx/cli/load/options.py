"""The command line of `peloton load`: its options, and the `Plan` that they make.

The short options, and what they mean, are those of the original load tester.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import msgspec

from pelotontx.config import parse_duration, parse_size

_URL: Final = "ws://127.0.0.1:8080/ws"
_SIZE_LIMIT_BYTES: Final = 16 * 1024 * 1024
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:/s)?")
# A server admits 20 handshakes a second from one address, but any number from loopback.
_CONNECTS_PER_S: Final = 15.0

DESCRIPTION: Final = """\
Calls a function from many connections at once, and tells how long the results took and
whether each call got exactly one. By default it calls at a fixed rate whatever the server does
(open loop), and a call's latency counts from the moment when it was due, so that a server that
stalls cannot hide it. With --in-flight each client waits for its answers instead (closed loop),
which finds the highest rate. With --pubsub it publishes, and checks that every subscriber gets
every event once and in order.
"""

EPILOG: Final = """\
examples:
  peloton load                                    1000 calls a second of test.delay for 10 s
  peloton load -u test.echo --in-flight 4 -d 30s  as many as the server can do
  peloton load -c 50 -r 20/s -u shop.total --args '{"apple": 2}'
  peloton load --pubsub -c 1000 --publishers 2 -r 10/s --json events.json

A call is expired when it was ACKed and its timeout passed without a result, and lost when nothing
came at all or its connection went away. A server is silent about both, so both mean status 1; see
--allow-expired. Refusals (NACK) are counted and mean nothing by themselves.

A server allows each connection 50 messages a second unless its rpc.message_rate says otherwise.
Ctrl-C ends the run early, with the report; a second one at once.

exit status: 0 every call has its answer (or refusal), every event its receipt; 1 something was
lost, expired, missing, out of order or answered twice, a connection was lost, or every result was
an error; 2 no connection, or a wrong command line; 130 interrupted before the first call.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do.

    Attributes:
        url: the server's WebSocket.
        headers: for the opening handshakes.
        clients: connections that call; with `is_pubsub` those that subscribe.
        publishers: connections that publish; 0 without `is_pubsub`.
        channels: how many channels the events are spread over.
        uri: the function, or the channels' common name.
        args: encoded JSON of each message.
        timeout_s: of a call; how long an event may take.
        interval_s: between two messages of one client; None: closed loop.
        in_flight: messages of one client without an answer, in a closed loop.
        duration_s: how long to measure; None: until `count`.
        count: how many messages to measure; None: as many as come.
        warm_up_s: before that.
        connect_interval_s: between two opening handshakes.
        metrics_url: of the server's metrics; "" for none, None to look in the usual places.
        json_path: where the report goes as JSON, "-" for stdout; None: nowhere.
        is_quiet: no progress.
        allows_expired: whether a call may expire without status 1.
    """

    url: str = _URL
    headers: dict[str, str] = field(default_factory=dict)
    clients: int = 100
    publishers: int = 0
    channels: int = 1
    uri: str = "test.delay"
    args: bytes = b'"100"'
    timeout_s: float = 1.0
    interval_s: float | None = 0.1
    in_flight: int = 1
    duration_s: float | None = 10.0
    count: int | None = None
    warm_up_s: float = 0.0
    connect_interval_s: float = 0.0
    metrics_url: str | None = None
    json_path: str | None = None
    is_quiet: bool = False
    allows_expired: bool = False

    @property
    def is_pubsub(self) -> bool:
        """Whether events are published instead of functions called."""
        return self.publishers > 0

    @property
    def senders(self) -> int:
        """How many clients send."""
        return self.publishers or self.clients


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; see `plan_from` for what is made of them."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--url", default=_URL, help=f"the server's WebSocket (default {_URL})")
    parser.add_argument(
        "-c", "--clients", metavar="N", type=_positive, default=100, help="connections (100)"
    )
    parser.add_argument("-u", "--uri", help="the function (test.delay; with --size test.echo)")
    _add_pace(parser)
    _add_payload(parser)
    _add_events(parser)
    _add_connections(parser)
    _add_report(parser)


def _add_pace(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much, how long")
    pace = group.add_mutually_exclusive_group()
    pace.add_argument(
        *("-r", "--rate"),
        metavar="RATE",
        type=_interval,
        default=0.1,
        help="of each client: 20/s, or the time between two calls: 50ms (100ms)",
    )
    pace.add_argument(
        "--in-flight",
        metavar="K",
        type=_positive,
        help="each client keeps K calls in flight instead",
    )
    group.add_argument(
        "-d", "--duration", metavar="TIME", type=_time, help="how long: 30s, 5m (10s without -n)"
    )
    group.add_argument("-n", "--count", metavar="N", type=_positive, help="at most N calls in all")
    group.add_argument(
        "-t", "--timeout", metavar="TIME", type=_time, default=1.0, help="of each call (1s)"
    )
    group.add_argument(
        "--warm-up", metavar="TIME", type=_time, default=0.0, help="first, unmeasured"
    )


def _add_payload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("payload").add_mutually_exclusive_group()
    group.add_argument("-p", "--payload", metavar="TEXT", default="100", help="a string (100)")
    group.add_argument("--size", type=_size, help="a string of so many bytes: 64B, 4KiB")
    group.add_argument("--args", metavar="JSON", type=_json, help="any JSON")


def _add_events(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("events instead of calls")
    group.add_argument(
        "--pubsub",
        action="store_true",
        help="publish; -c counts the subscribers, -r and --in-flight are the publishers', -u names "
        "the channel (load.test)",
    )
    group.add_argument(
        "--publishers", metavar="N", type=_positive, default=1, help="who publish (1)"
    )
    group.add_argument(
        "--channels",
        metavar="N",
        type=_positive,
        default=1,
        help="NAME.0, NAME.1 ...: each subscriber has one, publishers take turns over all (1)",
    )


def _add_connections(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connections")
    group.add_argument(
        "--connect-rate",
        metavar="RATE",
        type=_interval,
        help="opening handshakes: 100/s (15/s; to loopback as fast as 20 at a time go)",
    )
    group.add_argument(
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        type=_header,
        default=[],
        help="for the opening handshakes; may be repeated",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument(
        "--json",
        metavar="FILE",
        help="the report as JSON, too; - for stdout, and nothing else there",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="no progress")
    group.add_argument(
        "--metrics",
        metavar="URL",
        help="the server's metrics, read before and after (/metrics or /debug/vars of the same "
        "server); none for not at all",
    )
    group.add_argument(
        "--allow-expired", action="store_true", help="status 0 although calls expired"
    )


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that parsed options make.

    Raises:
        LocalProtocolError: the URL, or a header, cannot be used.
    """
    # Not above: whoever only wants help need not wait for it.
    from pelotontx.net.websocket.client import check_request

    headers = dict(options.header)
    check_request(options.url, headers)
    default_uri = "test.delay" if options.size is None else "test.echo"
    if options.pubsub:
        default_uri = "load.test"
    duration_s = options.duration
    if duration_s is None and options.count is None:
        duration_s = 10.0
    return Plan(
        url=options.url,
        headers=headers,
        clients=options.clients,
        publishers=options.publishers if options.pubsub else 0,
        channels=options.channels,
        uri=options.uri or default_uri,
        args=_args(options),
        timeout_s=options.timeout,
        interval_s=None if options.in_flight else options.rate,
        in_flight=options.in_flight or 1,
        duration_s=duration_s,
        count=options.count,
        warm_up_s=options.warm_up,
        connect_interval_s=_connect_interval_s(options),
        metrics_url="" if options.metrics == "none" else options.metrics,
        json_path=options.json,
        is_quiet=options.quiet,
        allows_expired=options.allow_expired,
    )


def _args(options: argparse.Namespace) -> bytes:
    if options.args is not None:
        encoded: bytes = options.args
        return encoded
    if options.size is not None:
        return b'"%b"' % (b"x" * options.size)
    return msgspec.json.encode(options.payload)


def _connect_interval_s(options: argparse.Namespace) -> float:
    if options.connect_rate is not None:
        interval_s: float = options.connect_rate
        return interval_s
    host = urlsplit(options.url).hostname or ""
    is_near = host in ("localhost", "::1") or host.startswith("127.")
    return 0.0 if is_near else 1 / _CONNECTS_PER_S


def _interval(text: str) -> float:
    """Seconds between two of something: from a rate a second, or from the time itself."""
    match = _RATE.fullmatch(text)
    if match is not None:
        rate = float(match[1])
        if not rate:
            raise argparse.ArgumentTypeError(f"{text!r}: as fast as possible is --in-flight")
        if rate > 1_000_000:
            raise argparse.ArgumentTypeError(f"{text!r}: up to 1000000 a second")
        return 1 / rate
    return _time(text)


def _time(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 5s, 500ms or 2m")
    if not 0.001 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: from 1ms to 24h")
    return seconds


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64B or 4KiB")
    if size > _SIZE_LIMIT_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: at most 16MiB")
    return size


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _json(text: str) -> bytes:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}")
    return text.encode()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not 'NAME: VALUE'")
    return name, value.strip()

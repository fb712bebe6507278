"""What hooks and middlewares cost: CPU of the juggler session for a call, a publication, an event.

In one process and interleaved, without network and broker: a session of each kind gets the same
messages. A call is CALL, ACK and RES; a publication PUB and ACK; an event one EVNT of which there
are many more, since it goes to every subscriber.

    python benchmarks/gateway.py            # some ten seconds
    python benchmarks/gateway.py --quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from support import median, save, table, versions
from twisted.internet.defer import Deferred, succeed

from pelotontx.broker.hub import Event, PendingCall
from pelotontx.gateway.juggler import Gateway, JugglerEndpoint, JugglerLimits
from pelotontx.net.websocket import Handshake
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler

UUID = "00000000-0000-4000-8000-000000000001"
CALL = juggler.encode_call(UUID, "test.echo", b'"hello"', 0)
PUB = juggler.encode_pub(UUID, "room", b'"hello"')
WORK = ("call", "publication", "event")


class Clock:
    """The time."""

    seconds = staticmethod(time.monotonic)


class Hub:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.calls: list[PendingCall] = []

    def call(self, owner: Any, request: Any, **_: Any) -> PendingCall:
        call = PendingCall(owner, request, UUID)
        owner.call_stored(call)
        self.calls.append(call)
        return call

    def publish(self, *_: Any) -> Deferred[None]:
        return succeed(None)


class Peer:
    """A connection that takes and forgets what it is sent."""

    peer = "nobody"

    def send_text(self, payload: bytes) -> None: ...

    send_frame = send_text


def gateway(*, hooks: int, middlewares: int) -> Gateway:
    """One that lets everything pass."""
    made = Gateway()
    for _ in range(hooks):
        for add in (made.on_call, made.on_publish):
            add(lambda session, message: None)

    async def pass_on(session: Any, message: Any, next: Any) -> None:
        await next(message)

    for _ in range(middlewares):
        made.middleware(pass_on)
    return made


KINDS: dict[str, Callable[[], Gateway | None]] = {
    "none": lambda: None,
    "one hook": lambda: gateway(hooks=1, middlewares=0),
    "one middleware": lambda: gateway(hooks=0, middlewares=1),
    "four middlewares": lambda: gateway(hooks=0, middlewares=4),
}


def measure(kind: str, count: int) -> dict[str, float]:
    """CPU microseconds of each kind of work."""
    hub: Any = Hub()
    limits = JugglerLimits(message_rate=1e9, message_burst=10**9)
    clock: Any = Clock()
    endpoint = JugglerEndpoint(
        hub=hub, clock=clock, wheel=Wheel(clock), limits=limits, gateway=KINDS[kind]()
    )
    accepted: Any = endpoint.accept(Handshake({}, [juggler.SUBPROTOCOL], "nobody"))
    session = accepted[1](Peer())
    event = Event("room", None, UUID, b'"hello"')

    def call() -> None:
        session.text_received(CALL)
        session.call_answered(hub.calls.pop(), b'"hello"')

    def publish() -> None:
        session.text_received(PUB)

    def receive() -> None:
        session.event(event)

    figures = {}
    for name, work in zip(WORK, (call, publish, receive), strict=True):
        began_s = time.process_time()
        for _ in range(count):
            work()
        figures[name] = (time.process_time() - began_s) / count * 1e6
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", help="where the figures go")
    options = parser.parse_args()
    count, rounds = (200, 3) if options.quick else (20_000, 7)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, figures in runs.items():
            figures.append(measure(kind, count))
    medians = {
        kind: {work: median(run[work] for run in figures) for work in WORK}
        for kind, figures in runs.items()
    }
    plain = medians["none"]
    rows = [
        [kind, *(f"{us[work]:.2f} us ({us[work] / plain[work]:.1f} x)" for work in WORK)]
        for kind, us in medians.items()
    ]
    print(table(["gateway", *WORK], rows))
    save(
        "gateway",
        {"versions": versions("pelotontx", "Twisted"), "microseconds": medians},
        options.json,
    )


if __name__ == "__main__":
    main()

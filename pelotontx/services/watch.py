"""What /health, /metrics and /debug/vars show: read off the parts when somebody asks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import time
from typing import Any, Final

import pelotontx
from pelotontx.backend.callee import CalleeService
from pelotontx.broker.hub import Hub
from pelotontx.broker.interface import Broker, Caller
from pelotontx.config import Config, without_password
from pelotontx.gateway.juggler import JugglerEndpoint
from pelotontx.net.admission import Admission
from pelotontx.net.kept import ProcessState
from pelotontx.net.tcp import unsent_bytes
from pelotontx.net.websocket import ServerFactory
from pelotontx.ops.access_log import AccessLog
from pelotontx.ops.debug_vars import DebugVars
from pelotontx.ops.health import Health
from pelotontx.ops.metrics import Histogram, Labelled, Metrics
from pelotontx.ops.stalls import StallMonitor
from pelotontx.services.listeners import Fronts, Listeners
from pelotontx.wire import juggler

_READ: Final = (juggler.CALL, juggler.PUB, juggler.SUB, juggler.UNSB)
_WRITTEN: Final = (juggler.NACK, juggler.ACK, juggler.RES, juggler.EVNT)
# What the server itself says no to with; an application's hooks may have further ones.
_NACK_CODES: Final = (400, 403, 413, 429, 500, 503)
_STATES: Final = ("running", "waiting", "failed", "stopping", "stopped")

# From a call inside one machine to the longest that anybody waits for by default.
_CALL_BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_RECEIVER_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The parts of a server that are looked at.

    Attributes:
        broker: for calls and results.
        events_broker: for events; may be the same.
        access_log: if there is one.
        callees: those that run in this process, by their name and their object's.
        processes: the states of supervised processes, by what they are for: name and object.
    """

    endpoint: JugglerEndpoint
    hub: Hub
    broker: Broker
    events_broker: Broker
    admission: Admission
    http: Fronts
    listeners: Listeners
    websockets: ServerFactory
    stalls: StallMonitor
    access_log: AccessLog | None = None
    callees: dict[tuple[str, str], CalleeService] = field(default_factory=dict)
    processes: dict[tuple[str, str], Callable[[], Sequence[ProcessState]]] = field(
        default_factory=dict
    )

    @property
    def is_available(self) -> bool:
        """Whether calls, results and events pass."""
        return self.broker.available and self.events_broker.available and self.hub.available


def watch_health(health: Health, watched: Watched, *, config: Config) -> None:
    """What is told of the whole server."""
    node = config.server.node or socket.gethostname()
    health.add("node", lambda: (True, node))
    shown: dict[str, Any] = {"url": without_password(config.broker.url)}
    if config.broker.pubsub_url:
        shown["pubsub_url"] = without_password(config.broker.pubsub_url)
    health.add(
        "broker",
        lambda: (watched.is_available, {**shown, "available": watched.is_available}),
    )


def watch_metrics(add: Metrics, watched: Watched) -> None:
    """What is counted."""
    add.gauges(
        "build_info",
        "Always 1; which version runs.",
        ["version"],
        lambda: {(pelotontx.__version__,): 1},
    )
    _watch_connections(add, watched)
    _watch_messages(add, watched.endpoint)
    _watch_calls(add, watched)
    _watch_events(add, watched.hub, watched.broker.caller)
    _watch_queues(add, watched.broker.caller)
    _watch_broker(add, watched)
    _watch_callees(add, watched.callees)
    _watch_processes(add, watched.processes)
    _watch_reactor(add, watched.stalls)
    _watch_listeners(add, watched.listeners)
    if watched.access_log is not None:
        _watch_access_log(add, watched.access_log)


def _watch_connections(add: Metrics, watched: Watched) -> None:
    http, websockets, endpoint = watched.http, watched.websockets, watched.endpoint
    add.gauge("http_connections", "Connections that speak HTTP.", lambda: http.connections)
    add.gauge("websocket_connections", "Open WebSockets.", lambda: len(websockets.connections))
    add.gauge(
        "websocket_unsent_bytes",
        "Bytes that wait for WebSocket clients to read them.",
        lambda: sum(unsent_bytes(connection.transport) for connection in websockets.connections),
    )
    add.gauge("juggler_sessions", "Open juggler sessions.", lambda: len(endpoint.sessions))
    add.counter(
        "juggler_sessions_opened", "juggler sessions so far.", lambda: endpoint.sessions_total
    )
    refused = watched.admission.refused
    add.counters(
        "connections_refused",
        "Connections past a limit: of the process, of one address, of its new ones a second.",
        ["limit"],
        lambda: {(limit,): count for limit, count in refused.items()},
    )
    add.counter(
        "floods",
        "WebSockets that were closed for too many control frames or fragments.",
        lambda: websockets.floods,
    )
    add.counter(
        "slow_consumers",
        "WebSockets that were closed for not reading.",
        lambda: websockets.slow_consumers,
    )


def _watch_messages(add: Metrics, endpoint: JugglerEndpoint) -> None:
    for name, help, types, counts in (
        ("messages_read", "Messages from juggler clients.", _READ, endpoint.messages_read),
        ("messages_written", "Messages to juggler clients.", _WRITTEN, endpoint.messages_written),
        ("slow_messages", "Messages that took long to handle.", _READ, endpoint.slow_messages),
    ):
        add.counters(name, help, ["type"], _by_type(types, counts))
    add.counters("nacks", "NACKs to juggler clients.", ["code"], partial(_by_code, endpoint.nacks))
    add.counter(
        "limits_exceeded",
        "Requests past a limit of their connection, and results too large to send.",
        lambda: endpoint.limits_exceeded,
    )
    add.counter(
        "panics_recovered",
        "Exceptions of ours or of an application in the handling of a message.",
        lambda: endpoint.panics_recovered,
    )


def _by_type(types: Sequence[int], counts: Mapping[int, int]) -> Callable[[], Labelled]:
    def read() -> Labelled:
        values: dict[tuple[str, ...], float] = {
            (juggler.NAMES[type_],): counts.get(type_, 0) for type_ in types
        }
        values["APPLICATION",] = counts.get(juggler.APPLICATION, 0)
        return values

    return read


def _by_code(nacks: Mapping[int, int]) -> Labelled:
    return {(str(code),): nacks.get(code, 0) for code in sorted({*_NACK_CODES, *nacks})}


def _watch_calls(add: Metrics, watched: Watched) -> None:
    hub = watched.hub
    latency = watched.endpoint.call_latency = Histogram(_CALL_BOUNDS_S)
    add.histogram("call_latency_seconds", "From a CALL to its RES, here at the server.", latency)
    add.gauge("calls_pending", "Calls that wait for a result.", lambda: hub.pending_calls)
    add.counter("calls_stored", "Calls that the broker took (ACK).", lambda: hub.calls_stored)
    add.counter("calls_refused", "Calls that it did not take (NACK).", lambda: hub.calls_refused)
    add.counter(
        "calls_expired", "Stored calls without a result in time.", lambda: hub.calls_expired
    )
    add.counter(
        "results_delivered", "Results handed to their caller.", lambda: hub.results_delivered
    )
    add.counter(
        "results_late",
        "Results that came when nobody waited for them any more.",
        lambda: hub.results_late,
    )


def _watch_events(add: Metrics, hub: Hub, caller: Caller) -> None:
    receivers = hub.fan_out = Histogram(_RECEIVER_BOUNDS)
    add.histogram("event_receivers", "To how many listeners an event went.", receivers)
    add.gauge("topics", "Channels and globs subscribed to.", lambda: hub.topics)
    add.counter("events_published", "Events sent to the broker.", lambda: hub.events_published)
    add.counter("events_received", "Events that came from the broker.", lambda: hub.events_received)
    add.counter(
        "events_delivered", "Events handed to a listener, each once.", lambda: hub.events_delivered
    )
    add.counter(
        "payloads_failed",
        "Results and events of other programs that could not be passed on.",
        lambda: hub.payloads_failed + caller.payloads_failed,
    )


def _watch_queues(add: Metrics, caller: Caller) -> None:
    waiting: dict[tuple[str, ...], float] = {}

    def found(lengths: Mapping[str, int]) -> None:
        waiting.clear()
        waiting.update({(uri,): length for uri, length in lengths.items()})

    add.before(lambda: caller.queue_lengths().addCallback(found))
    add.gauges("calls_waiting", "Calls in the broker that no callee has.", ["uri"], lambda: waiting)


def _watch_broker(add: Metrics, watched: Watched) -> None:
    calls, events = watched.broker, watched.events_broker
    add.gauge(
        "broker_available", "1 while calls, results and events pass.", lambda: watched.is_available
    )
    add.gauges(
        "broker_connected",
        "1 while the connections for this are up.",
        ["link"],
        lambda: {
            ("calls",): calls.available,
            ("results",): calls.caller.available,
            ("publishing",): events.available,
            ("events",): events.pubsub.available,
        },
    )


def _watch_callees(add: Metrics, callees: Mapping[tuple[str, str], CalleeService]) -> None:
    def read(value: Callable[[CalleeService], float]) -> Callable[[], Labelled]:
        return lambda: {labels: value(service) for labels, service in callees.items()}

    labels = ["callee", "object"]
    add.gauges("callee_taking", "1 while it takes calls.", labels, read(lambda c: c.is_taking))
    add.gauges(
        "callee_calls_running", "Functions that run.", labels, read(lambda c: c.calls_running)
    )
    add.gauges(
        "callee_calls_queued",
        "Calls that wait for a thread.",
        labels,
        read(lambda c: c.calls_queued),
    )
    for name, help, value in (
        ("callee_calls_run", "Calls whose function was called.", lambda c: c.calls_run),
        ("callee_calls_failed", "Calls whose function raised.", lambda c: c.calls_failed),
        ("callee_calls_expired", "Calls whose time was over.", lambda c: c.calls_expired),
        ("callee_calls_invalid", "Calls with wrong arguments.", lambda c: c.calls_invalid),
        ("callee_results_lost", "Results that were not stored.", lambda c: c.results_lost),
    ):
        add.counters(name, help, labels, read(value))


def _watch_processes(
    add: Metrics, processes: Mapping[tuple[str, str], Callable[[], Sequence[ProcessState]]]
) -> None:
    def by_state() -> Labelled:
        counts: dict[tuple[str, ...], float] = {}
        for labels, states in processes.items():
            now = [process["state"] for process in states()]
            counts.update({(*labels, state): now.count(state) for state in _STATES})
        return counts

    def restarts() -> Labelled:
        return {
            labels: sum(process["restarts"] for process in states())
            for labels, states in processes.items()
        }

    labels = ["part", "object"]
    add.gauges("processes", "Supervised processes by state.", [*labels, "state"], by_state)
    add.counters("process_restarts", "Restarts of supervised processes.", labels, restarts)


def _watch_reactor(add: Metrics, stalls: StallMonitor) -> None:
    add.histogram(
        "reactor_stall_seconds",
        "How late a timer of 50 ms was: how long the reactor was busy elsewhere.",
        stalls.lateness,
    )
    add.gauge("reactor_stall_max_seconds", "The longest of them.", lambda: stalls.longest_s)


def _watch_listeners(add: Metrics, listeners: Listeners) -> None:
    add.counter(
        "handshakes_failed",
        "Connections that ended in TLS's handshake or in a PROXY header.",
        listeners.handshakes_failed,
    )
    add.gauges(
        "certificate_expiry_seconds",
        "Until a listener's certificate expires, by its file.",
        ["certificate"],
        lambda: {(path,): at_s - time() for path, at_s in listeners.expiry().items()},
    )


def _watch_access_log(add: Metrics, log: AccessLog) -> None:
    add.counter("access_log_lines", "Lines of the access log.", lambda: log.written)
    add.counter(
        "access_log_lines_dropped",
        "Lines that were not written: the disk is full, or too slow.",
        lambda: log.dropped,
    )


def shown_command_line(words: Sequence[str]) -> list[str]:
    """The words of a command line, without what may be a password in a URL."""
    shown = []
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("-") and equals:
            shown.append(f"{option}={without_password(value)}")
        else:
            shown.append(without_password(word))
    return shown


def watch_debug_vars(variables: DebugVars, watched: Watched) -> None:
    """The counters of the juggler server and of its broker, under the names that they have there.

    Broker and server have one map in common. What cannot happen here is 0.
    """
    endpoint, hub = watched.endpoint, watched.hub

    def read() -> dict[str, int]:
        callees = watched.callees.values()
        return {
            **_message_counts(endpoint),
            "ActiveConns": len(endpoint.sessions),
            "TotalConns": endpoint.sessions_total,
            # A connection is one conversation of one thread.
            "ActiveConnGoros": len(endpoint.sessions),
            "TotalConnGoros": endpoint.sessions_total,
            "RecoveredPanics": endpoint.panics_recovered,
            "WriteLimitExceeded": endpoint.limits_exceeded,
            "WriteLockTimeouts": watched.websockets.slow_consumers,
            "Calls": sum(callee.calls_run for callee in callees),
            "ExpiredCalls": sum(callee.calls_expired for callee in callees),
            "FailedCallPayloadUnmarshals": sum(callee.calls_invalid for callee in callees),
            "FailedPTTLCalls": 0,  # a time to live is read in one step with what it belongs to
            "Results": hub.results_delivered,
            "ExpiredResults": hub.results_late,
            "FailedPTTLResults": 0,
            "Events": hub.events_delivered,
            "FailedEvntPayloadUnmarshals": hub.payloads_failed,
            "FailedResPayloadUnmarshals": watched.broker.caller.payloads_failed,
        }

    variables.add("juggler", read)


def _message_counts(endpoint: JugglerEndpoint) -> dict[str, int]:
    read, written, slow = endpoint.messages_read, endpoint.messages_written, endpoint.slow_messages
    names = juggler.NAMES
    return {
        "Msgs": read.total() + written.total(),
        "MsgsRead": read.total(),
        "MsgsWrite": written.total(),
        "MsgsUnknown": read[juggler.APPLICATION],
        **{f"Msgs{names[type_]}": read[type_] for type_ in _READ},
        **{f"Msgs{names[type_]}": written[type_] for type_ in _WRITTEN},
        "SlowProcessMsg": slow.total(),
        **{f"SlowProcessMsg{names[type_]}": slow[type_] for type_ in (*_READ, *_WRITTEN)},
    }

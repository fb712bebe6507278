"""The sections of where the server listens, and of what it writes down about its requests."""

from __future__ import annotations

from dataclasses import dataclass

from pelotontx.config.keys import key, required, wait
from pelotontx.config.texts import ENDPOINT, FILE, FILES, LOG_FILE, REDIRECT
from pelotontx.config.values import Choice, Flag, Integer


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """One `[[listener]]`."""

    endpoint: str = required(
        "tcp:443",
        ENDPOINT,
        'Where to listen; "systemd" or "systemd:NAME": the sockets that a socket unit passes.',
    )
    serves: str = key(
        "all",
        Choice(("all", "application", "operations")),
        "application: your application, WebSockets and the client; operations: health, metrics "
        "and debug_vars of [paths], for a listener that strangers cannot reach; all: both.",
    )
    certificate: tuple[str, ...] = key(
        [],
        FILES,
        "Speak TLS with this certificate: PEM, with those that lead to a root behind it. Of "
        "several, a client gets the one that holds the host name it asks for, else the first. "
        "Files that change are loaded anew within 10 s; connections stay.",
    )
    private_key: tuple[str, ...] = key(
        [],
        FILES,
        "The certificate's private key, PEM; as many as certificates. None: it stands in the "
        "certificate's file.",
    )
    client_ca: str = key(
        "",
        FILE,
        "Clients need a certificate that one of these has signed, PEM; empty: they need none.",
    )
    redirect: str = key(
        "",
        REDIRECT,
        "https: send every request to the same address under https, at the port of the first "
        "listener with a certificate, or at another one (https:443); empty: serve it.",
    )
    proxy_protocol: bool = key(
        False,
        Flag(),
        "Connections begin with a header that tells the client's address (PROXY protocol, 1 or 2), "
        "as TCP balancers send it. Taken from server.proxies and over UNIX sockets only: others "
        "could claim to be anybody.",
    )
    handshake_timeout_s: float = wait(
        "10s",
        "TLS's handshake and a PROXY header must be complete within this time each; then the "
        "connection is cut off. They take a few round trips.",
        most="5m",
    )
    backlog: int = key(
        1024,
        Integer(1, 65_535),
        "Connections that may wait to be accepted while the server is busy; the system's own limit "
        "is net.core.somaxconn. A backlog= in the endpoint wins.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogConfig:
    """`[access_log]`."""

    path: str = key(
        "",
        LOG_FILE,
        "Where a line for each answer goes: a file, - for standard output; empty: nowhere. A file "
        "that was moved away (logrotate) is opened anew for the next line, or at SIGHUP.",
    )
    format: str = key(
        "combined",
        Choice(("combined", "json")),
        "Lines as Apache and nginx write them, with the seconds behind; or one JSON object a line.",
    )
    query: bool = key(
        True,
        Flag(),
        "Write what follows the ? of a request's target. Turn it off where that holds secrets.",
    )

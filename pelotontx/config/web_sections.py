"""The sections of what is spoken with browsers: HTTP, WebSockets, what is served where."""

from __future__ import annotations

from dataclasses import dataclass

from pelotontx.config.keys import inherited, key, required, wait
from pelotontx.config.texts import (
    APPLICATION,
    COOKIE_NAME,
    FOLDER,
    MOUNT_PATH,
    ORIGINS,
    PACKAGE,
    SECRET,
    SECRETS,
    URL_PATH,
)
from pelotontx.config.values import Duration, Flag, Integer, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """`[http]`."""

    request_line_limit_bytes: int = key(
        "8190B",
        Size("64B", "1MiB"),
        "A request line. Longer: 414; patterns of routes run over the path, so it is bounded.",
        at_most="http.head_limit",
    )
    field_limit_bytes: int = key(
        "8190B",
        Size("64B", "1MiB"),
        "One header field. Longer: 431; a head is kept in memory until it is complete.",
        at_most="http.head_limit",
    )
    head_limit_bytes: int = key(
        "16KiB",
        Size("64B", "16MiB"),
        "The whole head of a request. Longer: 431; it is what a stranger can make us keep.",
    )
    fields_limit: int = key(
        100,
        Integer(1, 10_000),
        "Header fields of a request. More: 431; each costs a parser's turn and an object.",
    )
    head_timeout_s: float = wait(
        "10s",
        "A head must be complete within this time, however steadily it drips: 408. Against "
        "clients that hold connections open with unfinished requests.",
    )
    body_limit_bytes: int = key(
        "1MiB",
        Size("0B", "1024GiB"),
        "A request's body. Larger: 413; bodies are held in memory. A route that reads the body as "
        "it comes, or takes a form's files, may allow more.",
    )
    body_idle_timeout_s: float = wait(
        "30s", "A body of which nothing comes for this time: 408. Its sender is gone."
    )
    body_rate_bytes: int = key(
        "1KiB",
        Size("0B", "1GiB"),
        "A body must come with at least so many bytes a second on average: 408. Against bodies "
        "that drip; 0: any rate.",
    )
    body_rate_grace_s: float = key(
        "10s",
        Duration("0s", "1h"),
        "body_rate is asked for after this time only, so that a slow start is forgiven.",
    )
    unread_body_limit_bytes: int = key(
        "64KiB",
        Size("0B", "1GiB"),
        "What is left of a body when its request has been answered is read and dropped, if it is "
        "no more than this. Else the connection ends: dropping more would cost more.",
    )
    write_idle_timeout_s: float = wait(
        "30s",
        "A response of which the client takes nothing for this time is aborted: it would hold "
        "its buffer for ever.",
    )
    write_buffer_limit_bytes: int = key(
        "1MiB",
        Size("4KiB", "1GiB"),
        "Bytes of responses that wait for one client. Past it the connection is aborted or its "
        "source paused: what is not read must not fill our memory.",
    )
    idle_timeout_s: float = wait(
        "15s",
        "A kept-alive connection without a request is closed after this time: it holds a file "
        "descriptor that another client may need.",
    )
    requests_limit: int = key(
        1000,
        Integer(1, 1_000_000_000),
        "Requests of one connection, which is then closed after the answer: clients spread "
        "again over the servers behind a balancer.",
    )
    pipeline_limit_bytes: int = key(
        "16KiB",
        Size("1KiB", "16MiB"),
        "Bytes of pipelined requests that may wait behind one that is being answered. Past it "
        "nothing more is read until the answer is made.",
    )
    gzip: bool = key(
        False,
        Flag(),
        "Compress text of 1 KiB and more for clients that take it. Off, because the length of a "
        "compressed page gives a secret away that stands beside what a stranger can choose "
        "(BREACH). Such answers can be excepted: Cache-Control: no-transform.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketConfig:
    """`[websocket]`."""

    message_limit_bytes: int = key(
        "64KiB",
        Size("128B", "256MiB"),
        "A message from a client, all fragments together. Larger: close 1009; it is held in "
        "memory and decoded in one go.",
    )
    fragments_limit: int = key(
        1024,
        Integer(1, 1_000_000),
        "Fragments of one message. More: close 1009; empty ones cost time and pass every limit "
        "on bytes.",
    )
    frame_rate: int = key(
        2000,
        Integer(0, 100_000_000),
        "Pings, pongs and fragments a second of one connection. Past it: close 1008; they pass by "
        "rpc.message_rate and cost as much as messages; 0: any rate.",
    )
    deflate: bool = key(
        False,
        Flag(),
        "Take the offer of clients to compress messages (permessage-deflate, without context "
        "takeover). Saves network and costs time: a compressed message takes several times the "
        "work of a plain one.",
    )
    deflate_from_bytes: int = key(
        "256B",
        Size("0B", "1GiB"),
        "Messages of ours below this length go uncompressed: they would hardly get shorter.",
    )
    origins: tuple[str, ...] = key(
        [],
        ORIGINS,
        "Origins whose pages may connect besides our own. Any other page in a user's browser "
        "could else act in that user's name.",
    )
    allow_empty_subprotocol: bool = key(
        False,
        Flag(),
        "Take clients that offer no juggler.0 subprotocol, as old ones do.",
    )
    ping_interval_s: float = wait(
        "25s",
        "A ping is sent after about this time (20 % more or less, so that clients spread). Keeps "
        "connections through proxies that cut idle ones after 30 s.",
    )
    pong_timeout_s: float = wait(
        "10s", "A ping not answered in this time closes the connection: the client is gone."
    )
    open_timeout_s: float = wait(
        "5s", "The opening handshake must be complete within this time.", most="5m"
    )
    close_timeout_s: float = wait(
        "2s",
        "A client has this time to answer a close frame; then the connection is aborted.",
        most="5m",
    )
    outbound_limit_bytes: int = key(
        "1MiB",
        Size("1KiB", "1GiB"),
        "Bytes that wait for one client, results and events together. Past it: close 4008, slow "
        "consumer; one who does not read must not fill our memory.",
    )
    slow_message_threshold_s: float = wait(
        "100ms", "Messages that take longer to handle are counted as slow in the metrics."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """`[session]`."""

    secret: str = key(
        "",
        SECRET,
        "Signs the cookies of sessions: the same for all servers on one broker, best given as "
        "PELOTON_SESSION__SECRET. Empty: a random one, so that sessions end with this process and "
        "no other server knows them.",
    )
    old_secrets: tuple[str, ...] = key(
        [],
        SECRETS,
        "Secrets of before: cookies that they have signed are still good. After a change of secret "
        "the old one belongs here for as long as lifetime says.",
    )
    idle_timeout_s: float = wait(
        "30m",
        "A session that no request asked for in this time is over: whoever left a browser open "
        "is logged out.",
        most="8760h",
        at_most="session.lifetime",
    )
    lifetime_s: float = wait(
        "12h",
        "A session is over this time after it began, or after the login that gave it a new id: a "
        "stolen cookie is of use for no longer.",
        most="8760h",
    )
    cookie: str = key(
        "session",
        COOKIE_NAME,
        "The cookie's name; a secure one has __Host- before it, so that no other host of the "
        "domain can set it.",
    )
    secure: bool = key(
        True,
        Flag(),
        "Browsers may send the cookie over TLS only; Chromium makes an exception for loopback. "
        "Turn it off for development over plain HTTP with other clients, never else.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsConfig:
    """`[paths]`."""

    websocket: str = key("/ws", URL_PATH, "The WebSocket for calls, events and publishing.")
    health: str = key("/health", URL_PATH, "Whether the server and its broker are well, JSON.")
    metrics: str = key("/metrics", URL_PATH, "Metrics in Prometheus' format.")
    debug_vars: str = key(
        "/debug/vars", URL_PATH, "Counters under juggler's names, for juggler's tools, JSON."
    )
    client: str = key("/peloton.js", URL_PATH, "The client for browsers, an ES module.")
    demo: str = key("/", URL_PATH, "The demo page, served while web.app names no application.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """`[web]`."""

    app: str = key(
        "",
        APPLICATION,
        "Your web application, a pelotontx.web.app.App; empty: none, the demo is served.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadConfig:
    """`[upload]`."""

    folder: str = key(
        "",
        FOLDER,
        "Where files lie while a request is handled, best on the file system where they are kept: "
        "keeping them is only a move there. Empty: the system's temporary folder.",
    )
    body_limit_bytes: int = key(
        "64MiB",
        Size("1KiB", "1024GiB"),
        "A whole form with files. Larger: 413; it takes so much of the disk.",
    )
    files_limit: int = key(
        100, Integer(0, 100_000), "Files of one form. More: 413; each is a file on the disk."
    )
    fields_limit: int = key(
        1000, Integer(0, 100_000), "Other fields of one form. More: 413; each costs an object."
    )
    field_limit_bytes: int = key(
        "64KiB", Size("0B", "1GiB"), "One field. Larger: 413; fields are held in memory."
    )
    fields_limit_bytes: int = key(
        "1MiB",
        Size("0B", "1GiB"),
        "All fields of one form together. Larger: 413; they are held in memory.",
    )
    part_head_limit_bytes: int = key(
        "8KiB",
        Size("128B", "1MiB"),
        "The headers of a file or field. Larger: 413; they are held in memory.",
    )
    memory_limit_bytes: int = key(
        "16KiB", Size("0B", "1MiB"), "Files up to this size stay in memory."
    )
    threads: int = key(
        4, Integer(1, 1000), "Threads that write files: a slow disk stops them, not the server."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """One `[[mount]]`."""

    path: str = required("/shop", MOUNT_PATH, "Where it is; everything below belongs to it.")
    app: str = key("", APPLICATION, "A pelotontx.web.app.App; its routes are those below the path.")
    resource: str = key("", APPLICATION, "A twisted.web resource; of a Klein app its resource().")
    wsgi: str = key("", APPLICATION, "A WSGI application: Flask, Django.")
    asgi: str = key(
        "",
        APPLICATION,
        "An ASGI application: Starlette, FastAPI. Needs twistd --reactor=asyncio peloton ...",
    )
    directory: str = key("", FOLDER, "A folder of files.")
    package: str = key("", PACKAGE, "A folder of files inside a Python package.")
    threads: int = key(
        8,
        Integer(1, 1000),
        "Threads of a WSGI application. Each works on one request, from its first byte to the "
        "last of the answer.",
    )
    queue: int = key(
        64,
        Integer(0, 100_000),
        "Requests that wait for a thread of a WSGI application. Further ones get 503 at once: "
        "who waits too long asks again, and makes it worse.",
    )
    message_limit_bytes: int = key(
        "1MiB",
        Size("1KiB", "1GiB"),
        "One WebSocket message to an ASGI application. Longer: close 1009.",
    )
    body_limit_bytes: int | None = inherited(
        "http.body_limit",
        HttpConfig,
        "A request's body. resource keeps it in memory or in a temporary file, wsgi and asgi read "
        "it as it comes.",
    )
    max_age_s: float = key(
        "0s",
        Duration("0s", "8760h"),
        "How long browsers may use a file without asking; 0: they ask each time whether it has "
        "changed.",
    )

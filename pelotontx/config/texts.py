"""The strings that a configuration may hold: endpoints, URLs, origins, paths, dotted names."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from pelotontx.config.values import SecretText, Text, TextList

_ENDPOINT = re.compile(r"([A-Za-z][\w.-]*):(.+)", re.ASCII | re.DOTALL)
_ORIGIN = re.compile(r"(https?)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII)
_PATH = re.compile(r"/[\w.~!$&'()*+,;=:@/-]*", re.ASCII)


def _is_endpoint(text: str) -> bool:
    match = _ENDPOINT.fullmatch(text)
    if match is None:
        return False
    name, arguments = match.groups()
    if name not in ("tcp", "tcp6", "ssl"):
        return True  # plugins add their own; Twisted judges those
    port = next((part[5:] for part in arguments.split(":") if part.startswith("port=")), None)
    port = arguments.split(":")[0] if port is None else port
    return re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65535


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    return match[3] != {"http": "80", "https": "443"}[match[1]]


def _is_path(text: str) -> bool:
    return not text or (_PATH.fullmatch(text) is not None and "//" not in text)


def _is_dotted_name(text: str) -> bool:
    module, separator, attribute = text.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    return bool(separator) and all(name.isidentifier() for name in names)


def _is_broker_url(text: str) -> bool:
    if text in ("embedded:", "memory:"):
        return True
    if not text.isprintable() or " " in text:
        return False
    try:
        url = urlsplit(text)
        port, query = url.port, parse_qs(url.query, strict_parsing=bool(url.query))
    except ValueError:
        return False
    if url.fragment:
        return False
    if url.scheme == "redis" and not url.query and port != 0:
        return bool(url.hostname) and re.fullmatch(r"(/\d{0,5})?", url.path) is not None
    if url.scheme == "unix" and not url.netloc and set(query) <= {"db"}:
        db = query.get("db", ["0"])
        return len(url.path) > 1 and len(db) == 1 and db[0].isascii() and db[0].isdigit()
    return False


ENDPOINTS = TextList(
    Text(
        "endpoint string",
        'a Twisted endpoint such as "tcp:8080:interface=127.0.0.1" or "unix:/run/peloton.sock"',
        _is_endpoint,
    ),
    least=1,
)
BROKER_URL = SecretText(
    "broker URL",
    "one of embedded:, memory:, redis://[[user]:password@]host[:port][/db], "
    "unix:///path/to.sock[?db=N]",
    _is_broker_url,
)
ORIGINS = TextList(
    Text(
        "origin",
        'an origin as browsers send it, such as "https://shop.example": '
        "lower case, no path, no default port",
        _is_origin,
    )
)
URL_PATH = Text("path", 'a path that starts with "/", or "" to turn it off', _is_path)
OBJECT = Text(
    "dotted name", 'a dotted name "module:attribute", such as "shop.rpc:callee"', _is_dotted_name
)
APPLICATION = Text(
    "dotted name",
    'a dotted name "module:attribute", such as "shop.web:app", or ""',
    lambda text: not text or _is_dotted_name(text),
)
NAME = Text(
    "string",
    "a string without spaces or control characters",
    lambda text: not text or (text.isprintable() and " " not in text),
)

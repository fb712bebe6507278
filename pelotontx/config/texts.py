"""The strings that a configuration may hold: endpoints, URLs, origins, paths, dotted names."""

from __future__ import annotations

import re
from ipaddress import ip_network

from pelotontx.config.values import HiddenList, HiddenText, OneOrMore, SecretText, Text, TextList
from pelotontx.errors import ConfigError
from pelotontx.net.redis.address import FORMS, parse_redis_url

_ENDPOINT = re.compile(r"([A-Za-z][\w.-]*):(.+)", re.ASCII | re.DOTALL)
_ORIGIN = re.compile(r"(https?)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII)
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]", re.ASCII)
_SECRET = re.compile(r"[^\s,]{32,1024}")
_PATH = re.compile(r"/[\w.~!$&'()*+,;=:@/-]*", re.ASCII)


def _is_endpoint(text: str) -> bool:
    if text == "systemd":
        return True
    match = _ENDPOINT.fullmatch(text)
    if match is None:
        return False
    name, arguments = match.groups()
    if name not in ("tcp", "tcp6", "ssl"):
        return True  # plugins add their own; Twisted judges those
    port = next((part[5:] for part in arguments.split(":") if part.startswith("port=")), None)
    port = arguments.split(":")[0] if port is None else port
    return re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65535


def _is_file(text: str) -> bool:
    return bool(text) and "\0" not in text and not text.endswith("/")


def _is_redirect(text: str) -> bool:
    scheme, _, port = text.partition(":")
    return text in ("", "https") or (
        scheme == "https" and port.isdecimal() and port.isascii() and 0 < int(port) <= 65535
    )


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    return match[3] != {"http": "80", "https": "443"}[match[1]]


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _is_path(text: str) -> bool:
    return not text or (_PATH.fullmatch(text) is not None and "//" not in text)


def _is_dotted_name(text: str) -> bool:
    module, separator, attribute = text.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    return bool(separator) and all(name.isidentifier() for name in names)


def _is_package(text: str) -> bool:
    package, separator, folder = text.partition(":")
    parts = folder.split("/")
    is_inside = bool(folder) and all(part not in ("", ".", "..") for part in parts)
    return (is_inside or not separator) and all(name.isidentifier() for name in package.split("."))


def _is_broker_url(text: str) -> bool:
    if text in ("embedded:", "memory:"):
        return True
    try:
        parse_redis_url(text)
    except ConfigError:
        return False
    return True


ENDPOINT = Text(
    "endpoint string",
    'a Twisted endpoint such as "tcp:8080:interface=127.0.0.1" or "unix:/run/peloton.sock"',
    _is_endpoint,
)
ENDPOINTS = TextList(ENDPOINT, least=1)
FILES = OneOrMore(Text("path", 'a file such as "/etc/ssl/shop.pem"', _is_file))
FILE = Text(
    "path", 'a file such as "/etc/ssl/clients.pem", or ""', lambda text: not text or _is_file(text)
)
LOG_FILE = Text(
    "path",
    'a file such as "/var/log/peloton/access.log", "-" for standard output, or "" for none',
    lambda text: not text or _is_file(text),
)
REDIRECT = Text("redirect", '"https", "https:PORT" such as "https:8443", or ""', _is_redirect)
BROKER_URL = SecretText(
    "broker URL",
    f"one of embedded:, memory:, {FORMS}",
    _is_broker_url,
)
PUBSUB_URL = SecretText(
    "broker URL",
    'a broker URL of a server of yours, such as redis://events.example:6379, or ""',
    lambda text: not text or (text not in ("embedded:", "memory:") and _is_broker_url(text)),
)
ORIGINS = TextList(
    Text(
        "origin",
        'an origin as browsers send it, such as "https://shop.example": '
        "lower case, no path, no default port",
        _is_origin,
    )
)
NETWORKS = TextList(
    Text("network", 'an address or a network, such as "10.0.0.7" or "10.0.0.0/8"', _is_network)
)
PROXIES = TextList(
    Text(
        "network",
        'an address or a network, such as "10.0.0.7" or "10.0.0.0/8", or "unix"',
        lambda text: text == "unix" or _is_network(text),
    )
)
HOSTS = TextList(
    Text(
        "host name",
        'a host name such as "shop.example" or "*.shop.example": lower case, no port',
        lambda text: _HOST.fullmatch(text) is not None,
    )
)
URL_PATH = Text("path", 'a path that starts with "/", or "" to turn it off', _is_path)
MOUNT_PATH = Text(
    "path",
    'a path that starts with "/", such as "/shop"',
    lambda text: bool(text) and _is_path(text),
)
FOLDER = Text(
    "path", 'a folder such as "/srv/static", or ""', lambda text: not text or "\0" not in text
)
PACKAGE = Text(
    "package",
    'a package and a folder in it, "shop:static", or ""',
    lambda text: not text or _is_package(text),
)
OBJECT = Text(
    "dotted name", 'a dotted name "module:attribute", such as "shop.rpc:callee"', _is_dotted_name
)
APPLICATION = Text(
    "dotted name",
    'a dotted name "module:attribute", such as "shop.web:app", or ""',
    lambda text: not text or _is_dotted_name(text),
)
GLOB = Text(
    "glob",
    'a Redis glob such as "shop.*"; *, ?, [ab] and \\ have a meaning',
    lambda text: bool(text) and text.isprintable(),
)
GATEWAY = Text(
    "dotted name",
    'a dotted name "module:attribute", such as "shop.rpc:gateway", or ""',
    lambda text: not text or _is_dotted_name(text),
)
NAME = Text(
    "string",
    "a string without spaces or control characters",
    lambda text: not text or (text.isprintable() and " " not in text),
)
SECRET = HiddenText(
    "secret",
    "at least 32 characters without spaces and commas, such as those of "
    "python -c 'import secrets; print(secrets.token_urlsafe(32))', or \"\"",
    lambda text: not text or _SECRET.fullmatch(text) is not None,
)
SECRETS = HiddenList(SECRET)
COOKIE_NAME = Text(
    "cookie name",
    'letters, digits, "-" and "_", such as "session"',
    lambda text: re.fullmatch(r"[\w-]{1,64}", text, re.ASCII) is not None,
)

"""What proxies say of a client, and whom of them to believe. Pure.

    X-Forwarded-For     client, proxy, proxy      each proxy appends the address that it sees
    X-Forwarded-Proto   https                     likewise, or set by one of them
    X-Forwarded-Host    shop.example
    Forwarded           for=client;proto=https;host=shop.example, for="[2001:db8::1]:47011"

RFC 7239 is the last one. Anybody can send these fields, so they are read from the right: as long as
what they say comes from a trusted address. For `web.request`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple

X_FORWARDED: Final = "x-forwarded"
FORWARDED: Final = "forwarded"

#: Peers whose trust is remembered; an address costs microseconds to parse.
_KEPT: Final = 4096
#: More proxies than any request passes: the rest of a list is not looked at.
_HOPS: Final = 32

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._]+)(?::[0-9]{1,5})?")
_PAIR = re.compile(
    r"""[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=
    (?:"((?:[^"\\]|\\.)*)"|([!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]*))[ \t]*(;|,|$)""",
    re.VERBOSE,
)
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")


class Origin(NamedTuple):
    """Where a request comes from.

    Attributes:
        client: the IP address as text, ``unix`` for a socket of this machine.
        scheme: ``http`` or ``https``.
        host: which host was asked, with the port if there is one.
    """

    client: str
    scheme: str
    host: str


class Proxies:
    """Whose word counts; false if nobody's does.

    Args:
        networks: addresses and networks; ``unix`` for everybody who comes by a UNIX socket.
        header: the fields that these proxies write, `X_FORWARDED` or `FORWARDED`. The other ones
            are not read: a proxy that does not know them lets through what a client makes up.

    Raises:
        ValueError: not a network.
    """

    def __init__(self, networks: Iterable[str] = (), *, header: str = X_FORWARDED) -> None:
        words = set(networks)
        self._unix = "unix" in words
        self._networks = [ip_network(word) for word in sorted(words - {"unix"})]
        self._header = header
        self._trusted = lru_cache(_KEPT)(self._is_trusted)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: str) -> bool:
        return self._trusted(address)

    def _is_trusted(self, address: str) -> bool:
        if address == "unix":
            return self._unix
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address):
            parsed = parsed.ipv4_mapped or parsed
        return any(parsed in network for network in self._networks)

    def origin(self, direct: Origin, fields: Callable[[str], list[str]]) -> Origin:
        """The client behind trusted proxies.

        Args:
            direct: what the connection itself says.
            fields: all values of a field by its name.
        """
        if direct.client not in self:
            return direct
        if self._header == FORWARDED:
            hops = _forwarded(fields("forwarded"))
        else:
            hops = _x_forwarded(fields)
        client, scheme, host = direct
        for hop in reversed(hops):
            scheme = hop.get("proto", scheme)
            host = hop.get("host", host)
            address = _address(hop.get("for", ""))
            if not address:
                break  # hidden or malformed: the last one that is known counts
            client = address
            if client not in self:
                break
        return Origin(client, scheme, host)


def _x_forwarded(fields: Callable[[str], list[str]]) -> list[dict[str, str]]:
    """The three lists, put side by side from the right; a shorter one says the same of the rest."""
    addresses = _listed(fields("x-forwarded-for"))
    hops: list[dict[str, str]] = [{"for": address} for address in addresses] or [{}]
    for key, name in (("proto", "x-forwarded-proto"), ("host", "x-forwarded-host")):
        for hop, value in zip(reversed(hops), reversed(_listed(fields(name))), strict=False):
            _put(hop, key, value)
    return hops


def _listed(lines: list[str]) -> list[str]:
    return [value.strip() for value in ",".join(lines).split(",")[-_HOPS:] if value.strip()]


def _forwarded(lines: list[str]) -> list[dict[str, str]]:
    """The elements of RFC 7239, section 4; none of them if one cannot be read."""
    text = ",".join(lines)
    hops: list[dict[str, str]] = []
    position = 0
    hop: dict[str, str] = {}
    while position < len(text):
        found = _PAIR.match(text, position)
        if found is None:
            return []
        name, quoted, token, end = found.groups()
        value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        _put(hop, name.lower(), value)
        position = found.end()
        if end != ";":
            hops.append(hop)
            hop = {}
    return hops[-_HOPS:]


def _put(hop: dict[str, str], key: str, value: str) -> None:
    """Keeps what can be believed of a value: a scheme that we serve, a host that is one."""
    if key == "proto":
        value = value.lower()
        if value not in ("http", "https"):
            return
    if key == "host" and not _HOST.fullmatch(value):
        return
    hop[key] = value


def _address(text: str) -> str:
    """The IP address of a node, without its port; empty if it is none."""
    found = _WITH_PORT.fullmatch(text)
    try:
        parsed = ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    return str(parsed)

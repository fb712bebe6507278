"""The header with which a TCP balancer tells whose connection it passes on: PROXY protocol 1 and 2.

    version 1    PROXY TCP4 192.0.2.7 198.51.100.1 50321 443 CRLF    at most 107 bytes
                 PROXY TCP6 2001:db8::7 2001:db8::1 50321 443 CRLF
                 PROXY UNKNOWN ... CRLF
    version 2    12 bytes of signature
                 1 byte   version 2, and the command: 0 LOCAL, 1 PROXY
                 1 byte   family: 0 none, 1 IPv4, 2 IPv6, 3 UNIX; and 0 none, 1 stream, 2 datagram
                 2 bytes  the length of what follows
                 addresses of that family, ports, then whatever else there is (TLVs, not read)

Source: haproxy.org, doc/proxy-protocol.txt. For `net.proxy_protocol`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from pelotontx.errors import ProtocolError

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_PREAMBLE: Final = Struct("!12sBBH")
_WORD: Final = b"PROXY "
_LINE_LIMIT: Final = 107

#: All that follows the preamble of version 2. Addresses take at most 216 bytes; balancers add names
#: and, for TLS, a certificate's subject.
_REST_LIMIT: Final = 4096

_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_IPV4_STREAM: Final = 0x11
_IPV6_STREAM: Final = 0x21
_ADDRESS_BYTES: Final = {1: 12, 2: 36, 3: 216}


class InvalidProxyHeader(ProtocolError):
    """What came is no such header, or one that must not be believed."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header that was read.

    Attributes:
        size: its bytes; what follows is the client's.
        source: the client's host and port; None when the balancer speaks for itself or does not
            know, and the connection's own peer counts.
    """

    size: int
    source: tuple[str, int] | None


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None while it is not complete.

    Raises:
        InvalidProxyHeader: at the first byte that shows it.
    """
    if _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return _read_binary(data)
    if _WORD.startswith(data[: len(_WORD)]):
        return _read_line(data)
    raise InvalidProxyHeader("no PROXY header")


def _read_line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _LINE_LIMIT)
    if end < 0:
        if len(data) >= _LINE_LIMIT:
            raise InvalidProxyHeader("a line that is too long")
        return None
    try:
        _, family, *words = data[:end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise InvalidProxyHeader("not ASCII") from None
    if family == "UNKNOWN":
        return ProxyHeader(end + 2, None)
    if family not in ("TCP4", "TCP6") or len(words) != 4:
        raise InvalidProxyHeader("a malformed line")
    kind = IPv4Address if family == "TCP4" else IPv6Address
    try:
        source, _ = (str(kind(word)) for word in words[:2])
    except AddressValueError:
        raise InvalidProxyHeader("a malformed address") from None
    if "%" in source or not all(_PORT.fullmatch(word) and int(word) < 65536 for word in words[2:]):
        raise InvalidProxyHeader("a malformed address")
    return ProxyHeader(end + 2, (source, int(words[2])))


def _read_binary(data: bytes) -> ProxyHeader | None:
    if len(data) < _PREAMBLE.size:
        return None
    _, command, family, length = _PREAMBLE.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise InvalidProxyHeader("an unknown version or command")
    if family >> 4 > 3 or family & 15 > 2:
        raise InvalidProxyHeader("an unknown family")
    if length > _REST_LIMIT:
        raise InvalidProxyHeader("a header that is too long")
    if command == _PROXY and length < _ADDRESS_BYTES.get(family >> 4, 0):
        raise InvalidProxyHeader("a header that is too short")
    size = _PREAMBLE.size + length
    if len(data) < size:
        return None
    return ProxyHeader(size, _address(family, data) if command == _PROXY else None)


def _address(family: int, data: bytes) -> tuple[str, int] | None:
    """The source; None for what cannot be a TCP client's."""
    start = _PREAMBLE.size
    if family == _IPV4_STREAM:
        host, port = data[start : start + 4], data[start + 8 : start + 10]
        return str(IPv4Address(host)), int.from_bytes(port)
    if family == _IPV6_STREAM:
        host, port = data[start : start + 16], data[start + 32 : start + 34]
        return str(IPv6Address(host)), int.from_bytes(port)
    return None


__all__ = ["InvalidProxyHeader", "ProxyHeader", "read_proxy_header"]

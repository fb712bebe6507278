"""The PROXY header: what is read, what is waited for, and what is refused at once."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.wire.proxy_header import InvalidProxyHeader, ProxyHeader, read_proxy_header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
IPV4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 50321, 443)
IPV6 = bytes.fromhex("20010db8000000000000000000000007") * 2 + struct.pack("!HH", 50321, 443)


def binary(command: int, family: int, rest: bytes, *, length: int | None = None) -> bytes:
    size = len(rest) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + rest


GOOD = {
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50321 443\r\n": ("192.0.2.7", 50321),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": ("255.255.255.255", 65535),
    b"PROXY TCP6 2001:db8::7 2001:db8::1 0 443\r\n": ("2001:db8::7", 0),
    b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n": (
        ":".join(["ffff"] * 8),
        65535,
    ),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff::1 whatever follows\r\n": None,
    binary(0x21, 0x11, IPV4): ("192.0.2.7", 50321),
    binary(0x21, 0x21, IPV6): ("2001:db8::7", 50321),
    binary(0x21, 0x11, IPV4 + b"\x04\x00\x01x"): ("192.0.2.7", 50321),  # a TLV behind
    binary(0x21, 0x31, b"/run/a".ljust(108, b"\0") * 2): None,
    binary(0x21, 0x00, b""): None,
    binary(0x21, 0x12, IPV4): None,  # a datagram is nobody's connection
    binary(0x20, 0x11, IPV4): None,  # LOCAL: the balancer looks whether we are well
    binary(0x20, 0x00, b""): None,
}

BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"PROXX TCP4 192.0.2.7 198.51.100.1 50321 443\r\n",
    b"proxy TCP4 192.0.2.7 198.51.100.1 50321 443\r\n",
    b"PROXY TCP5 192.0.2.7 198.51.100.1 50321 443\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50321\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50321 443 \r\n",
    b"PROXY TCP4  192.0.2.7 198.51.100.1 50321 443\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50321 65536\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 443\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 050321 443\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 5e3 443\r\n",
    b"PROXY TCP4 192.0.2.007 198.51.100.1 50321 443\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.1 50321 443\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 50321 443\r\n",
    b"PROXY TCP6 192.0.2.7 198.51.100.1 50321 443\r\n",
    b"PROXY TCP6 fe80::1%lo fe80::2 50321 443\r\n",
    b"PROXY TCP4 192.0.2.\xb2 198.51.100.1 50321 443\r\n",
    b"PROXY " + b"x" * 200,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 bytes
    SIGNATURE[:-1] + b"\r",
    binary(0x11, 0x11, IPV4),  # version 1 in a header of version 2
    binary(0x31, 0x11, IPV4),
    binary(0x22, 0x11, IPV4),
    binary(0x21, 0x41, IPV4),
    binary(0x21, 0x13, IPV4),
    binary(0x21, 0x11, IPV4[:-1]),
    binary(0x21, 0x21, IPV6[:-1]),
    binary(0x21, 0x31, bytes(215)),
    binary(0x21, 0x11, IPV4, length=4097),
    binary(0x20, 0x00, b"", length=65535),
]


@pytest.mark.parametrize(("data", "source"), GOOD.items(), ids=range(len(GOOD)))
def test_a_header_is_read_alike_whole_and_byte_by_byte(
    data: bytes, source: tuple[str, int] | None
) -> None:
    for end in range(len(data)):
        assert read_proxy_header(data[:end]) is None
    assert read_proxy_header(data) == ProxyHeader(len(data), source)


@pytest.mark.parametrize("data", GOOD, ids=range(len(GOOD)))
def test_what_follows_a_header_is_left_alone(data: bytes) -> None:
    header = read_proxy_header(data + b"GET / HTTP/1.1\r\n\r\n" + data)
    assert header is not None
    assert header.size == len(data)


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_anything_else_is_refused_before_it_fills_the_memory(data: bytes) -> None:
    with pytest.raises(InvalidProxyHeader):
        read_proxy_header(data)
    with pytest.raises(InvalidProxyHeader):
        read_proxy_header(data + bytes(200))


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: SIGNATURE + tail))
def test_no_bytes_do_anything_else_than_that(data: bytes) -> None:
    try:
        header = read_proxy_header(data)
    except InvalidProxyHeader:
        return
    assert header is None or header.size <= len(data)

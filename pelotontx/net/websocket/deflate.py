"""permessage-deflate (RFC 7692), the server's side: what is agreed on, messages in, frames out.

For `net.websocket`. No context is kept from one message to the next, in either direction: an idle
connection costs no more than one without, and a compressed frame is the same for all who get it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Final

from autobahn.exception import PayloadCorruptError, PayloadExceededError

from pelotontx.net.websocket.message import BINARY_FINAL, TEXT_FINAL, encode_frame

_NAME: Final = "permessage-deflate"
_FLAGS: Final = frozenset(("server_no_context_takeover", "client_no_context_takeover"))
_MOST_BITS: Final = 15
# RFC 7692 begins at 8, which zlib cannot write without a head of its own.
_is_writable_window = re.compile(r"9|1[0-5]").fullmatch
_is_window = re.compile(r"[89]|1[0-5]").fullmatch

# RFC 6455, 9.1; a quoted value must be a token too.
_CHARACTER = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_is_token = re.compile(rf"{_CHARACTER}+").fullmatch
_match_parameter = re.compile(
    rf'({_CHARACTER}+)(?:[ \t]*=[ \t]*(?:({_CHARACTER}+)|"((?:\\?{_CHARACTER})+)"))?'
).fullmatch

# What a flush ends with, and what is left out of every message (RFC 7692, 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"

# The reactor waits meanwhile; better levels take three times as long for a tenth of the bytes.
_LEVEL: Final = zlib.Z_BEST_SPEED


class MalformedOffer(Exception):
    """The header is not a list of extensions; the handshake must fail (RFC 6455, 9.1)."""


def agree(header: str) -> tuple[int, str] | None:
    """Answers a Sec-WebSocket-Extensions header: the first offer of ours that is acceptable.

    Offers with unknown, repeated or senseless parameters are declined (RFC 7692, 7).

    Returns:
        The window in bits that we may use, and the header's value for the answer.

    Raises:
        MalformedOffer: see there.
    """
    agreed = None
    for name, parameters in _read_offers(header):
        bits = _acceptable(parameters) if name == _NAME else None
        if agreed is None and bits is not None:
            answer = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
            if "server_max_window_bits" in dict(parameters):
                answer = f"{answer}; server_max_window_bits={bits}"
            agreed = bits, answer
    return agreed


def _read_offers(header: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    for offer in header.split(","):
        name, *pieces = (piece.strip(" \t") for piece in offer.split(";"))
        if not name and not pieces:
            continue  # RFC 9110, 5.6.1: empty elements are skipped
        matches = [_match_parameter(piece) for piece in pieces]
        if _is_token(name) is None or None in matches:
            raise MalformedOffer
        yield name, [_parameter(match) for match in matches if match is not None]


def _parameter(match: re.Match[str]) -> tuple[str, str | None]:
    name, value, quoted = match.groups()
    return name, value if quoted is None else quoted.replace("\\", "")


def _acceptable(parameters: list[tuple[str, str | None]]) -> int | None:
    """The window in bits that the offer leaves to us; None if it must be declined."""
    bits = _MOST_BITS
    for name, value in parameters:
        if name in _FLAGS and value is None:
            continue
        if name == "server_max_window_bits" and value and _is_writable_window(value):
            bits = int(value)
        elif name != "client_max_window_bits" or not (value is None or _is_window(value)):
            return None
    return bits if len(dict(parameters)) == len(parameters) else None


class Inflater:
    """Inflates the messages of one connection: what Autobahn calls a PMCE, receiving only.

    It stops one byte past the limit that it is given, whatever a piece of data would become.
    """

    EXTENSION_NAME = _NAME
    __slots__ = ("_stream",)

    def start_decompress_message(self) -> None:
        """A compressed message begins."""
        self._stream = zlib.decompressobj(-_MOST_BITS)

    def decompress_message_data(self, data: bytes, max_output_len: int) -> bytes:
        """More of the message.

        Raises:
            PayloadExceededError: it becomes longer than `max_output_len`.
            PayloadCorruptError: it is not compressed.
        """
        inflated = self._inflate(data, max(max_output_len, 0) + 1)
        if len(inflated) > max_output_len:
            raise PayloadExceededError("too long when inflated")
        return inflated

    def end_decompress_message(self) -> None:
        """The message is whole; nothing of it is kept.

        Raises:
            PayloadCorruptError: it is not.
        """
        if not self._stream.eof:
            self._inflate(_TAIL, 1)
        del self._stream

    def _inflate(self, data: bytes, limit: int) -> bytes:
        try:
            inflated = self._stream.decompress(data, limit)
        except zlib.error as error:
            raise PayloadCorruptError(str(error)) from None
        # RFC 7692, 7.2.3.4: behind a final block comes an empty one, one octet without its tail.
        if self._stream.unused_data not in (b"", b"\x00"):
            raise PayloadCorruptError("data behind the final block")
        return inflated


class Deflater:
    """Compresses frames for all connections; the last one is kept, as an event goes to many.

    Args:
        from_bytes: frames below this length stay as they are.
    """

    def __init__(self, from_bytes: int) -> None:
        self._from_bytes = from_bytes
        self._frame = b""
        self._compressed: dict[int, bytes] = {}

    def compressed(self, frame: bytes, window_bits: int) -> bytes:
        """A frame of `encode_frame` compressed, unless it is short or a control frame."""
        if len(frame) < self._from_bytes or frame[0] not in (TEXT_FINAL, BINARY_FINAL):
            return frame
        if frame is not self._frame:
            self._frame = frame
            self._compressed.clear()
        compressed = self._compressed.get(window_bits)
        if compressed is None:
            compressed = self._compressed[window_bits] = _deflate_frame(frame, window_bits)
        return compressed


def _deflate_frame(frame: bytes, window_bits: int) -> bytes:
    payload = memoryview(frame)[{126: 4, 127: 10}.get(frame[1], 2) :]
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -window_bits)
    deflated = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
    compressed = encode_frame(deflated.removesuffix(_TAIL), binary=frame[0] == BINARY_FINAL)
    return bytes((compressed[0] | 0x40,)) + compressed[1:]  # RSV1

from __future__ import annotations

import zlib
from typing import Any

import pytest
from autobahn.exception import PayloadCorruptError, PayloadExceededError
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.net.websocket import WebSocketLimits, encode_frame
from pelotontx.net.websocket.deflate import Deflater, Inflater, MalformedOffer, agree
from tests.support.websocket_peer import (
    BINARY,
    PING,
    PONG,
    TEXT,
    ServerTestCase,
    close_frame,
    frame,
    request,
)

COMPRESSED = 4  # RSV1
BOTH = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def deflated(payload: bytes, *, final: bool = False) -> bytes:
    """A compressed message, made by zlib alone."""
    stream = zlib.compressobj(wbits=-15)
    if final:  # RFC 7692, 7.2.3.4
        return stream.compress(payload) + stream.flush() + b"\x00"
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(data: bytes, bits: int = 15) -> bytes:
    """What is in a compressed frame of a server."""
    start = {126: 4, 127: 10}.get(data[1], 2)
    return zlib.decompressobj(-bits).decompress(data[start:] + b"\x00\x00\xff\xff")


class TestAgree:
    @pytest.mark.parametrize(
        ("header", "bits"),
        [
            ("permessage-deflate", 15),
            ("permessage-deflate; client_max_window_bits", 15),
            ("permessage-deflate; client_max_window_bits=8", 15),
            ('permessage-deflate;client_max_window_bits = "1\\0"', 15),
            ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", 15),
            ("permessage-bzip2, permessage-deflate", 15),
            ("permessage-deflate; unknown, permessage-deflate", 15),
            (",, permessage-deflate ,", 15),
        ],
    )
    def test_an_offer_is_taken_without_context_takeover(self, header: str, bits: int) -> None:
        assert agree(header) == (bits, BOTH)

    @pytest.mark.parametrize("bits", range(9, 16))
    def test_a_window_that_is_asked_for_is_kept_to(self, bits: int) -> None:
        header = f"permessage-deflate; server_max_window_bits={bits}"
        assert agree(header) == (bits, f"{BOTH}; server_max_window_bits={bits}")

    def test_the_first_acceptable_offer_wins(self) -> None:
        header = (
            "permessage-deflate; server_max_window_bits=8, "
            "permessage-deflate; server_max_window_bits=10, permessage-deflate"
        )
        assert agree(header) == (10, f"{BOTH}; server_max_window_bits=10")

    @pytest.mark.parametrize(
        "parameters",
        [
            "server_max_window_bits",
            "server_max_window_bits=8",  # which zlib cannot write
            "server_max_window_bits=16",
            "server_max_window_bits=09",
            "server_max_window_bits=+9",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=x",
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            "client_no_context_takeover; client_no_context_takeover",
            "server_max_window_bits=10; server_max_window_bits=10",
            "Client_no_context_takeover",
            "anything",
        ],
    )
    def test_senseless_parameters_are_declined(self, parameters: str) -> None:
        assert agree(f"permessage-deflate; {parameters}") is None

    @pytest.mark.parametrize("header", ["", "x-webkit-deflate-frame", "permessage-brotli; a=b"])
    def test_others_are_declined(self, header: str) -> None:
        assert agree(header) is None

    @pytest.mark.parametrize(
        "header",
        [
            "permessage deflate",
            "permessage-deflate;",
            "permessage-deflate; a=",
            "permessage-deflate; a=b=c",
            'permessage-deflate; a="b',
            'permessage-deflate; a="b c"',
            "; a",
            "permessage-deflate, =",
            "permessage-defläte",
        ],
    )
    def test_what_is_no_list_of_extensions_is_malformed(self, header: str) -> None:
        with pytest.raises(MalformedOffer):
            agree(header)


class TestInflater:
    def inflate(self, *pieces: bytes, limit: int = 1000) -> bytes:
        inflater = Inflater()
        inflater.start_decompress_message()
        done = b""
        for piece in pieces:
            done += inflater.decompress_message_data(piece, limit - len(done))
        inflater.end_decompress_message()
        return done

    @given(st.binary(max_size=1000), st.booleans())
    def test_messages_of_zlib_come_back_whole_and_byte_by_byte(
        self, payload: bytes, final: bool
    ) -> None:
        data = deflated(payload, final=final)
        assert self.inflate(data) == payload
        assert self.inflate(*(data[n : n + 1] for n in range(len(data)))) == payload

    @pytest.mark.parametrize(
        "data", ["f248cdc9c90700", "f348cdc9c9070000", "000500faff48656c6c6f00"]
    )
    def test_examples_of_the_rfc(self, data: str) -> None:
        assert self.inflate(bytes.fromhex(data)) == b"Hello"

    def test_nothing_is_an_empty_message(self) -> None:
        assert self.inflate(b"\x00") == b""

    @pytest.mark.parametrize("length", [1, 999, 1000])
    def test_up_to_the_limit(self, length: int) -> None:
        assert self.inflate(deflated(b"x" * length)) == b"x" * length

    @pytest.mark.parametrize("length", [1001, 1258, 100_000_000])
    def test_a_bomb_is_stopped_at_the_limit(self, length: int) -> None:
        with pytest.raises(PayloadExceededError):
            self.inflate(deflated(b"x" * length))

    @pytest.mark.parametrize(
        "data", [b"\xff" * 10, deflated(b"x", final=True) + b"\x00", deflated(b"x", final=True) * 2]
    )
    def test_garbage_is_corrupt(self, data: bytes) -> None:
        with pytest.raises(PayloadCorruptError):
            self.inflate(data)
        with pytest.raises(PayloadCorruptError):
            self.inflate(*(data[n : n + 1] for n in range(len(data))))

    def test_nothing_is_kept_between_messages(self) -> None:
        inflater = Inflater()
        inflater.start_decompress_message()
        inflater.decompress_message_data(deflated(b"x"), 1000)
        inflater.end_decompress_message()
        assert not hasattr(inflater, "_stream")


class TestDeflater:
    @pytest.mark.parametrize("length", [300, 10_000, 200_000])
    @pytest.mark.parametrize("binary", [False, True])
    def test_a_long_frame_is_compressed(self, length: int, *, binary: bool) -> None:
        payload = b'{"number": 1},' * length
        frame_ = Deflater(0).compressed(encode_frame(payload, binary=binary), 15)
        assert frame_[0] == (0xC2 if binary else 0xC1)
        assert len(frame_) < len(payload) / 10
        assert inflated(frame_) == payload

    @pytest.mark.parametrize("bits", range(9, 16))
    def test_a_peer_with_this_window_can_read_it(self, bits: int) -> None:
        payload = b"".join(b"%d," % (n * n % 100_003) for n in range(20_000))
        assert inflated(Deflater(0).compressed(encode_frame(payload), bits), bits) == payload

    def test_short_frames_and_control_frames_stay_as_they_are(self) -> None:
        for from_bytes, frame_ in ((1003, encode_frame(b"x" * 998)), (0, b"\x8a\x01x")):
            assert Deflater(from_bytes).compressed(frame_, 15) is frame_

    @pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256))])
    def test_any_message_can_be_compressed(self, payload: bytes) -> None:
        assert inflated(Deflater(0).compressed(encode_frame(payload), 15)) == payload

    def test_the_same_frame_is_compressed_once_a_window(self) -> None:
        deflater, frame_ = Deflater(0), encode_frame(b"x" * 1000)
        compressed = deflater.compressed(frame_, 15)
        assert deflater.compressed(frame_, 9) is not compressed
        assert deflater.compressed(frame_, 15) is compressed
        assert inflated(deflater.compressed(encode_frame(b"y" * 1000), 15)) == b"y" * 1000


class DeflateTests(ServerTestCase):
    limits = WebSocketLimits(message_limit_bytes=10_000, deflate=True)

    def agree(self, offer: str | None = "permessage-deflate") -> bytes:
        self.connect()
        self.receive(request(Sec_WebSocket_Extensions=offer))
        head = self.transport.take()
        if head.startswith(b"HTTP/1.1 101 "):
            self.conversation = self.conversations[-1]
        return head

    def raw(self) -> bytes:
        return self.transport.take()

    def test_an_offer_is_answered(self) -> None:
        self.assertIn(b"\r\nSec-WebSocket-Extensions: %b\r\n" % BOTH.encode(), self.agree())

    def test_no_offer_and_a_bad_one_are_no_extension(self) -> None:
        for offer in (None, "permessage-deflate; server_max_window_bits=99"):
            head = self.agree(offer)
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
            self.assertNotIn(b"Sec-WebSocket-Extensions", head)
            self.connection.send_text(b"x" * 1000)
            self.assertEqual(self.sent(), [(TEXT, b"x" * 1000)])
            self.receive(frame(TEXT, deflated(b"x"), rsv=COMPRESSED))
            self.assertCloses(1002)

    def test_a_malformed_offer_is_400(self) -> None:
        self.assertTrue(self.agree("permessage-deflate;").startswith(b"HTTP/1.1 400 "))
        self.assertIsDropped()

    def test_off_means_off(self) -> None:
        self.make(WebSocketLimits())
        for offer in ("permessage-deflate", "permessage-deflate;"):
            self.assertNotIn(b"Extensions", self.agree(offer))

    def test_messages_come_compressed_and_plain_whole_and_in_fragments(self) -> None:
        self.agree()
        text, data = "ä€😀".encode() * 100, deflated("ä€😀".encode() * 100)
        self.receive(frame(TEXT, data, rsv=COMPRESSED) + frame(TEXT, text))
        first = frame(BINARY, data[:5], fin=False, rsv=COMPRESSED)
        self.receive(first + frame(PING) + frame(0, data[5:9], fin=False) + frame(0, data[9:]))
        self.receive(frame(TEXT, text[:5], fin=False) + frame(0, text[5:]))
        stream = frame(TEXT, data, rsv=COMPRESSED)
        self.receive(*(stream[n : n + 1] for n in range(len(stream))))
        expected = [(TEXT, text), (TEXT, text), (BINARY, text), (TEXT, text), (TEXT, text)]
        self.assertEqual(self.messages(), expected)
        self.assertEqual(self.sent(), [(PONG, b"")])

    def test_the_limit_counts_after_inflation(self) -> None:
        for payload, is_fine in ((b"x" * 10_000, True), (b"x" * 10_001, False)):
            self.agree()
            data = deflated(payload)
            self.receive(frame(BINARY, data[:9], fin=False, rsv=COMPRESSED) + frame(0, data[9:]))
            if is_fine:
                self.assertEqual(self.messages(), [(BINARY, payload)])
            else:
                self.assertCloses(1009)
                self.assertEqual(self.messages(), [])

    def test_what_cannot_be_read_is_1007(self) -> None:
        for data in (b"\xff" * 10, deflated(b"x", final=True) * 2, deflated(b"\xff")):
            self.agree()
            self.receive(frame(TEXT, data, rsv=COMPRESSED))
            self.assertCloses(1007)
            self.assertEqual(self.messages(), [])

    def test_compressed_where_it_may_not_be_is_1002(self) -> None:
        first = frame(TEXT, b"x", fin=False)
        for data in (
            frame(PING, b"x", rsv=COMPRESSED),
            first + frame(0, deflated(b"x"), rsv=COMPRESSED),
            frame(TEXT, b"x", rsv=COMPRESSED | 1),
        ):
            self.agree()
            self.receive(data)
            self.assertCloses(1002)

    def test_long_messages_go_compressed_and_others_plain(self) -> None:
        self.agree()
        self.connection.send_text(b"x" * 1000)
        data = self.raw()
        self.assertEqual((data[0], inflated(data)), (0xC1, b"x" * 1000))
        self.connection.send_text(b"x" * 100)
        self.receive(frame(PING, b"x" * 125) + close_frame(1000, b"x" * 123))
        sent = [(TEXT, b"x" * 100), (PONG, b"x" * 125)]
        self.assertClosesAfter(sent, 1000, b"x" * 123)

    def test_one_compression_serves_all_and_the_others_get_it_plain(self) -> None:
        made: list[Any] = []
        for offer in ("permessage-deflate", None, "permessage-deflate"):
            self.agree(offer)
            made.append((self.connection, self.transport))
        frame_ = encode_frame(b"x" * 1000)
        for connection, _ in made:
            connection.send_frame(frame_)
        written = [transport._tempDataBuffer[-1] for _, transport in made]
        self.assertIs(written[0], written[2])
        self.assertIs(written[1], frame_)

    def test_what_is_sent_counts_compressed_for_slow_consumers(self) -> None:
        self.make(WebSocketLimits(deflate=True, outbound_limit_bytes=100_000))
        self.agree()
        self.transport.room = 0
        for _ in range(200):
            self.connection.send_text(b"x" * 10_000)
        self.assertEqual(self.factory.slow_consumers, 0)
        for _ in range(5000):
            self.connection.send_text(b"x" * 10_000)
        self.assertEqual(self.factory.slow_consumers, 1)

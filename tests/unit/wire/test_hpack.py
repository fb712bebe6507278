"""HPACK that remembers: the same as HPACK that does not."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelotontx.wire.hpack import Decoder, Encoder

_NAMES = st.sampled_from([b":status", b"date", b"etag", b"x-long"])
_SIZES_OF_VALUES = st.sampled_from([0, 1, 2, 900, 1900, 5000])
_HEAD = st.lists(st.tuples(_NAMES, _SIZES_OF_VALUES), max_size=5)
_HEADS = st.lists(_HEAD, max_size=20)
_SIZES = st.sampled_from([0, 100, 2000, 4096, 2**31])

Head = list[tuple[bytes, int]]


def fields_of(head: Head) -> list[tuple[bytes, bytes]]:
    return [(name, b"v" * size) for name, size in head]


@settings(deadline=None)
@given(_HEADS)
def test_what_is_encoded_is_decoded(heads: list[Head]) -> None:
    encoder, plain, decoder = Encoder(), hpack.Decoder(), Decoder()
    for head in map(fields_of, heads):
        for _ in range(2):
            block = encoder.encode(head)
            assert list(plain.decode(block, raw=True)) == head
            assert list(decoder.decode(block, raw=True)) == head


@settings(deadline=None)
@given(st.lists(st.tuples(_HEAD, _SIZES), max_size=20))
def test_tables_may_change_their_size(heads: list[tuple[Head, int]]) -> None:
    encoder, decoder = Encoder(), Decoder()
    for head, size in heads:
        encoder.header_table_size = size
        fields = fields_of(head)
        for _ in range(2):
            assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
        assert encoder.header_table_size == min(size, 4096)


@settings(deadline=None)
@given(_HEADS)
def test_blocks_of_a_plain_encoder_are_decoded(heads: list[Head]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for head in map(fields_of, heads):
        for _ in range(3):
            assert list(decoder.decode(encoder.encode(head), raw=True)) == head


def test_equal_block_means_something_else_once_the_table_has_changed() -> None:
    decoder = Decoder()
    first = b"\x40\x01a\x01b"  # enters the table
    assert list(decoder.decode(first, raw=True)) == [(b"a", b"b")]
    assert list(decoder.decode(b"\xbe", raw=True)) == [(b"a", b"b")]
    assert list(decoder.decode(b"\x40\x01a\x01c", raw=True)) == [(b"a", b"c")]
    assert list(decoder.decode(b"\xbe", raw=True)) == [(b"a", b"c")]
    assert list(decoder.decode(b"\xbf", raw=True)) == [(b"a", b"b")]


def test_list_past_the_limit_is_refused_each_time() -> None:
    decoder = Decoder()
    decoder.max_header_list_size = 100
    decoder.decode(b"\x40\x01a\x14" + b"b" * 20, raw=True)
    for _ in range(2):
        with pytest.raises(hpack.OversizedHeaderListError):
            decoder.decode(b"\xbe" * 4, raw=True)

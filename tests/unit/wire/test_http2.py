"""HTTP/2's frames and heads, without a connection."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes

from pelotontx.wire.http import RefusedRequest
from pelotontx.wire.http2 import (
    DATA,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    BrokenConnection,
    FrameCutter,
    MalformedRequest,
    request_head,
    response_pairs,
)

SETTINGS_FRAME = b"\0\0\0\x04\0\0\0\0\0"
PING_FRAME = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
DATA_FRAME = b"\0\0\x03\0\x01\x80\0\0\x05abc"
HEAD_FRAME = b"\0\0\x02\x01\0\0\0\0\x07xy"
HEAD_END = b"\0\0\x01\x09\x04\0\0\0\x07z"
ALL = PREFACE + SETTINGS_FRAME + PING_FRAME + DATA_FRAME + HEAD_FRAME + HEAD_END


def cut_all(cutter: FrameCutter) -> list[tuple[int, int, bytes]]:
    frames = []
    while (frame := cutter.cut()) is not None:
        frames.append((frame.kind, frame.stream_id, frame.data))
    return frames


EXPECTED = [
    (SETTINGS, 0, SETTINGS_FRAME),
    (PING, 0, PING_FRAME),
    (DATA, 5, DATA_FRAME),
    (HEADERS, 7, HEAD_FRAME),
    (9, 7, HEAD_END),
]


@pytest.mark.parametrize("split", range(len(ALL) + 1))
def test_frames_are_the_same_wherever_they_are_split(split: int) -> None:
    cutter = FrameCutter()
    cutter.feed(ALL[:split])
    frames = cut_all(cutter)
    cutter.feed(ALL[split:])
    assert frames + cut_all(cutter) == EXPECTED


def test_frames_are_the_same_byte_by_byte() -> None:
    cutter = FrameCutter()
    frames = []
    for index in range(len(ALL)):
        cutter.feed(ALL[index : index + 1])
        frames += cut_all(cutter)
    assert frames == EXPECTED


def test_cutter_knows_when_it_is_in_a_head() -> None:
    cutter = FrameCutter()
    assert cutter.is_in_head  # nothing has come yet
    cutter.feed(PREFACE + SETTINGS_FRAME + HEAD_FRAME[:4])
    cut_all(cutter)
    assert cutter.is_in_head
    assert not cutter.is_in_block
    cutter.feed(HEAD_FRAME[4:])
    cut_all(cutter)
    assert cutter.is_in_block
    cutter.feed(HEAD_END + DATA_FRAME[:5])
    cut_all(cutter)
    assert not cutter.is_in_head


@pytest.mark.parametrize("index", range(len(PREFACE)))
def test_first_wrong_byte_of_a_preface_is_enough(index: int) -> None:
    cutter = FrameCutter()
    with pytest.raises(BrokenConnection):
        cutter.feed(PREFACE[:index] + b"?")


def test_frame_is_refused_by_its_announced_size() -> None:
    cutter = FrameCutter()
    cutter.feed(PREFACE + b"\x00\x40\x01\0\0\0\0\0\x01")
    with pytest.raises(BrokenConnection) as caught:
        cutter.cut()
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


def test_head_of_a_request() -> None:
    pairs = [
        (b":method", b"POST"),
        (b":path", b"/a?b"),
        (b":scheme", b"https"),
        (b":authority", b"h:1"),
        (b"x", b"1"),
        (b"cookie", b"a=b"),
        (b"x", b""),
        (b"cookie", b"c=d"),
        (b"te", b"trailers"),
    ]
    assert request_head(pairs) == (
        b"POST",
        b"/a?b",
        b"HTTP/1.1\r\nhost: h:1\r\nx: 1\r\nx: \r\nte: trailers\r\ncookie: a=b; c=d\r\n\r\n",
    )


def test_refusals_and_malformed_heads_are_told_apart() -> None:
    pairs = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a")]
    with pytest.raises(MalformedRequest):
        request_head(pairs)
    with pytest.raises(RefusedRequest) as caught:
        request_head([*pairs, (b":path", b"a")])
    assert caught.value.status == 400


def test_fields_of_a_response() -> None:
    fields = b"Content-Type: a/b\r\nUpgrade: x\r\nSet-Cookie: a=b: c\r\nX-Empty: \r\n"
    assert response_pairs(fields) == (
        (b"content-type", b"a/b"),
        (b"set-cookie", b"a=b: c"),
        (b"x-empty", b""),
    )
    assert response_pairs(b"") == ()

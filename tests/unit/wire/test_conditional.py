"""Preconditions, entity tags, dates and ranges, by the tables of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.net.http import Headers
from pelotontx.wire.conditional import (
    RANGES_LIMIT,
    ByteRange,
    Validators,
    check_preconditions,
    content_range,
    format_date,
    parse_date,
    parse_etags,
    parse_ranges,
    wanted_ranges,
)

THEN_S = 784111777
THEN = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
VERSION = Validators('"a"', THEN_S)


def fields(**values: str | list[str]) -> Headers:
    """Header fields by names with underscores."""
    pairs = []
    for name, value in values.items():
        for each in [value] if isinstance(value, str) else value:
            pairs.append((name.replace("_", "-"), each))
    return Headers(pairs)


@pytest.mark.parametrize(
    ("given_fields", "verdict"),
    [
        ({}, 0),
        # If-Match: strong comparison
        ({"if_match": '"a"'}, 0),
        ({"if_match": '"b", "a"'}, 0),
        ({"if_match": ['"b"', '"a"']}, 0),
        ({"if_match": "*"}, 0),
        ({"if_match": 'W/"a"'}, 412),
        ({"if_match": '"b"'}, 412),
        ({"if_match": "a"}, 412),
        # If-Unmodified-Since counts only without If-Match
        ({"if_unmodified_since": THEN}, 0),
        ({"if_unmodified_since": AFTER}, 0),
        ({"if_unmodified_since": BEFORE}, 412),
        ({"if_unmodified_since": "yesterday"}, 0),
        ({"if_match": '"a"', "if_unmodified_since": BEFORE}, 0),
        # If-None-Match: weak comparison
        ({"if_none_match": '"a"'}, 304),
        ({"if_none_match": 'W/"a"'}, 304),
        ({"if_none_match": '"b", W/"a"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"b"'}, 0),
        ({"if_none_match": '"a'}, 0),
        ({"if_none_match": '"a" "a"'}, 0),
        # If-Modified-Since counts only without If-None-Match
        ({"if_modified_since": THEN}, 304),
        ({"if_modified_since": AFTER}, 304),
        ({"if_modified_since": BEFORE}, 0),
        ({"if_modified_since": "soon"}, 0),
        ({"if_none_match": '"b"', "if_modified_since": AFTER}, 0),
        # the order: what fails first decides
        ({"if_match": '"b"', "if_none_match": '"a"'}, 412),
        ({"if_match": '"a"', "if_none_match": '"a"'}, 304),
        ({"if_unmodified_since": BEFORE, "if_modified_since": THEN}, 412),
        ({"if_unmodified_since": AFTER, "if_modified_since": THEN}, 304),
    ],
)
def test_preconditions(given_fields: dict[str, str], verdict: int) -> None:
    assert check_preconditions("GET", fields(**given_fields), VERSION) == verdict
    assert check_preconditions("HEAD", fields(**given_fields), VERSION) == verdict


def test_preconditions_of_a_write() -> None:
    assert check_preconditions("PUT", fields(if_none_match="*"), VERSION) == 412
    assert check_preconditions("PUT", fields(if_none_match='"b"'), VERSION) == 0
    assert check_preconditions("PUT", fields(if_modified_since=THEN), VERSION) == 0
    assert check_preconditions("PUT", fields(if_match='"b"'), VERSION) == 412


def test_representation_without_a_date_or_a_tag() -> None:
    undated = Validators('"a"')
    assert check_preconditions("GET", fields(if_modified_since=THEN), undated) == 0
    assert check_preconditions("GET", fields(if_unmodified_since=BEFORE), undated) == 0
    untagged = Validators(modified_s=THEN_S)
    assert check_preconditions("GET", fields(if_none_match='"a"'), untagged) == 0
    assert check_preconditions("GET", fields(if_match='"a"'), untagged) == 412


def test_weak_tag_never_matches_strongly() -> None:
    weak = Validators('W/"a"')
    assert check_preconditions("GET", fields(if_match='W/"a"'), weak) == 412
    assert check_preconditions("GET", fields(if_none_match='"a"'), weak) == 304


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ('"a"', ['"a"']),
        ('""', ['""']),
        ('"a,b", W/"c"', ['"a,b"', 'W/"c"']),
        (', ,"a" ,,\t"b",', ['"a"', '"b"']),
        ("*", None),
        (' "a"', ['"a"']),
        ("", []),
        ("a", []),
        ('"a', []),
        ('"a" b', []),
        ('w/"a"', []),
        ('"a b"', []),
        ('*, "a"', []),
    ],
)
def test_entity_tags(value: str, tags: list[str] | None) -> None:
    assert parse_etags([value]) == tags


def test_long_list_of_half_tags_is_read_in_no_time() -> None:
    assert parse_etags(['"a",' * 2000 + '"']) == []
    assert parse_etags([", " * 4000 + "x"]) == []


@pytest.mark.parametrize(
    "value", [THEN, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_dates_in_three_forms(value: str) -> None:
    assert parse_date(value) == THEN_S


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "784111777",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 36 Nov 1994 08:49:37 GMT",
        "Sun, 06 Foo 1994 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ],
)
def test_other_dates_do_not_count(value: str) -> None:
    assert parse_date(value) is None


def test_date_is_written_in_the_first_form() -> None:
    assert format_date(THEN_S) == THEN


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        ("bytes=0-499", [(0, 499)]),
        ("bytes=500-999", [(500, 999)]),
        ("bytes=-500", [(500, 999)]),
        ("bytes=990-", [(990, 999)]),
        ("bytes=0-0,-1", [(0, 0), (999, 999)]),
        ("BYTES=0-0", [(0, 0)]),
        ("bytes=0-", [(0, 999)]),
        ("bytes=0-999999", [(0, 999)]),
        ("bytes=-999999", [(0, 999)]),
        ("bytes= 1-2 ,\t4-5", [(1, 2), (4, 5)]),
        ("bytes=,1-2,,4-5,", [(1, 2), (4, 5)]),
        # the order asked for, unless some are one
        ("bytes=4-5,1-2", [(4, 5), (1, 2)]),
        ("bytes=500-700,601-999", [(500, 999)]),
        ("bytes=600-700,0-9,650-800", [(0, 9), (600, 800)]),
        ("bytes=0-1,2-3", [(0, 3)]),
        # some that are not there
        ("bytes=1000-,5-6", [(5, 6)]),
        ("bytes=1000-", []),
        ("bytes=1000-2000,3000-", []),
        ("bytes=-0", []),
        # not ranges: the whole
        ("bytes=", None),
        ("bytes=,", None),
        ("bytes=-", None),
        ("bytes=5-4", None),
        ("bytes=0-1,5-4", None),
        ("bytes=1-2-3", None),
        ("bytes=--5", None),
        ("bytes=a-b", None),
        ("bytes=0x1-2", None),
        ("bytes 0-5", None),
        ("items=0-5", None),
        ("bytes=0-9999999999999999999", None),
        ("bytes=1 2-3", None),
        ("", None),
    ],
)
def test_ranges_of_a_thousand_bytes(value: str, ranges: list[tuple[int, int]] | None) -> None:
    assert parse_ranges(value, 1000) == ranges


def test_ranges_of_nothing() -> None:
    assert parse_ranges("bytes=0-", 0) == []
    assert parse_ranges("bytes=-0", 0) == []
    assert parse_ranges("bytes=-5", 0) is None


def test_too_many_ranges_are_the_whole() -> None:
    spread = [f"{start}-{start}" for start in range(0, 2 * RANGES_LIMIT, 2)]
    parts = parse_ranges("bytes=" + ",".join(spread), 1000)
    assert parts is not None
    assert len(parts) == RANGES_LIMIT
    assert parse_ranges("bytes=" + ",".join([*spread, "900-901"]), 1000) is None
    assert parse_ranges("bytes=" + ",".join(["0-"] * 500), 1000) == [(0, 999)]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20),
    st.integers(0, 50),
)
def test_parts_are_what_was_asked_for_and_each_byte_once(
    asked: list[tuple[int, int]], size: int
) -> None:
    asked = [(first, first + more) for first, more in asked]
    text = ",".join(f"{first}-{last}" for first, last in asked)
    parts = parse_ranges(f"bytes={text}", size)
    if parts is None:
        return
    sent = [spot for part in parts for spot in range(part.first, part.last + 1)]
    wanted = {spot for first, last in asked for spot in range(first, last + 1) if spot < size}
    assert len(sent) == len(set(sent))
    assert set(sent) == wanted
    assert sum(part.length for part in parts) <= size


@given(st.text(alphabet="bytes=0123456789-, \tx", max_size=60), st.integers(0, 1000))
def test_any_field_gives_parts_that_are_there(value: str, size: int) -> None:
    for part in parse_ranges(value, size) or []:
        assert 0 <= part.first <= part.last < size


@pytest.mark.parametrize(
    ("if_range", "holds"),
    [
        ('"a"', True),
        ('"b"', False),
        ('W/"a"', False),
        (THEN, True),
        (BEFORE, False),
        (AFTER, False),
        ("soon", False),
    ],
)
def test_if_range_decides_whether_ranges_count(if_range: str, holds: bool) -> None:
    asked = fields(range="bytes=0-1", if_range=if_range)
    parts = wanted_ranges(asked, VERSION, 1000, now_s=THEN_S + 60)
    assert parts == ([(0, 1)] if holds else None)


def test_if_range_takes_no_weak_validator() -> None:
    asked = fields(range="bytes=0-1", if_range='W/"a"')
    assert wanted_ranges(asked, Validators('W/"a"'), 1000, now_s=THEN_S + 60) is None
    asked = fields(range="bytes=0-1", if_range=THEN)  # it may change again within this second
    assert wanted_ranges(asked, VERSION, 1000, now_s=THEN_S + 0.9) is None


def test_range_fields_that_contradict_each_other_do_not_count() -> None:
    twice = fields(range=["bytes=0-1", "bytes=2-3"])
    assert wanted_ranges(twice, VERSION, 1000, now_s=0) is None
    twice = fields(range="bytes=0-1", if_range=['"a"', '"a"'])
    assert wanted_ranges(twice, VERSION, 1000, now_s=0) is None
    assert wanted_ranges(fields(), VERSION, 1000, now_s=0) is None


def test_content_range() -> None:
    assert content_range(ByteRange(0, 499), 1234) == "bytes 0-499/1234"
    assert content_range(None, 1234) == "bytes */1234"

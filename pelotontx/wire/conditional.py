"""Conditional and range requests: RFC 9110, sections 8.8, 13 and 14, as rules on values. Pure.

    ETag                 [ "W/" ] DQUOTE *etagc DQUOTE
    If-Match             "*" / #entity-tag          else 412
    If-Unmodified-Since  HTTP-date                  else 412; only without If-Match
    If-None-Match        "*" / #entity-tag          else 304, or 412 unless GET or HEAD
    If-Modified-Since    HTTP-date                  else 304; GET and HEAD, without If-None-Match
    If-Range             entity-tag / HTTP-date     else the Range field does not count
    Range                "bytes=" #( first "-" [ last ] / "-" length )
    Content-Range        "bytes" SP ( first "-" last / "*" ) "/" length

Whoever has a representation judges a request with `check_preconditions`, and then asks
`wanted_ranges`. A field that is malformed counts as one that is not there, except that an If-Match
which nothing can match fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

#: More parts in one answer than any reader needs; each costs its own head and read.
RANGES_LIMIT = 8

_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_ETAGS = re.compile(rf"[ \t,]*(?:{_ETAG.pattern}[ \t]*(?:,[ \t,]*|$))+")
_RANGE_SET = re.compile(r"bytes=([0-9, \t-]+)", re.I)
_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_HTTP_DATE = re.compile(
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"  # what everybody sends
    r"|[A-Z][a-z]{5,8}, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"  # RFC 850
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}"  # asctime
)


class Fields(Protocol):
    """A request's header fields, found in any case of their names."""

    def get(self, name: str, default: str = "") -> str:
        """The first value of a field."""

    def get_all(self, name: str) -> list[str]:
        """Every value of a field."""


class Validators(NamedTuple):
    """What tells one version of a representation from another.

    Attributes:
        etag: as it is sent, quotes included; empty if there is none.
        modified_s: seconds since the epoch, whole; None if unknown.
    """

    etag: str = ""
    modified_s: int | None = None


class ByteRange(NamedTuple):
    """Bytes of a representation; `last` is one of them."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many bytes they are, at least one."""
        return self.last - self.first + 1


def check_preconditions(method: str, fields: Fields, validators: Validators) -> int:
    """Judges the If-* fields, in the order of RFC 9110, 13.2.2.

    Args:
        method: upper case.
        fields: the request's.
        validators: of the representation that would be sent; there is one.

    Returns:
        0 to go on, 304 (Not Modified) or 412 (Precondition Failed).
    """
    matched = fields.get_all("if-match")
    if matched:
        if not _matches(matched, validators.etag, is_weak_enough=False):
            return 412
    else:
        limit_s = parse_date(fields.get("if-unmodified-since"))
        if limit_s is not None and _is_later(validators.modified_s, limit_s):
            return 412
    is_read = method in ("GET", "HEAD")
    unmatched = fields.get_all("if-none-match")
    if unmatched:
        if _matches(unmatched, validators.etag, is_weak_enough=True):
            return 304 if is_read else 412
        return 0
    since_s = parse_date(fields.get("if-modified-since")) if is_read else None
    if since_s is None or validators.modified_s is None:
        return 0
    return 0 if _is_later(validators.modified_s, since_s) else 304


def _is_later(modified_s: int | None, limit_s: int) -> bool:
    return modified_s is not None and modified_s > limit_s


def _matches(values: Iterable[str], etag: str, *, is_weak_enough: bool) -> bool:
    listed = parse_etags(values)
    if listed is None:
        return True
    if is_weak_enough:
        return etag.removeprefix("W/") in [tag.removeprefix("W/") for tag in listed]
    return etag in listed and not etag.startswith("W/")


def parse_etags(values: Iterable[str]) -> list[str] | None:
    """The entity tags of an If-Match or If-None-Match field; None for ``*``, which is any."""
    value = ", ".join(values).strip(" \t")
    if value == "*":
        return None
    return _ETAG.findall(value) if _ETAGS.fullmatch(value) else []


@lru_cache(maxsize=256)
def parse_date(value: str) -> int | None:
    """An HTTP-date in any of its three forms as seconds since the epoch; None if it is not one."""
    if not _HTTP_DATE.fullmatch(value):
        return None
    try:
        parsed = parsedate_to_datetime(value)
    except ValueError:
        return None
    return int(parsed.replace(tzinfo=UTC).timestamp())


@lru_cache(maxsize=256)
def format_date(at_s: int) -> str:
    """Seconds since the epoch as an HTTP-date."""
    return formatdate(at_s, usegmt=True)


def wanted_ranges(
    fields: Fields, validators: Validators, size: int, *, now_s: float
) -> list[ByteRange] | None:
    """The parts of a representation that a GET asks for.

    Call it when `check_preconditions` said to go on. Ranges that overlap or touch are one, and
    then all are in the order of the representation, so that together they are never more than it.

    Args:
        fields: the request's.
        validators: of the representation.
        size: its bytes.
        now_s: seconds since the epoch; a date is a strong validator only when it is past.

    Returns:
        None for the whole; an empty list when none of the ranges is there: 416.
    """
    values = fields.get_all("range")
    if len(values) != 1 or not _if_range_holds(fields.get_all("if-range"), validators, now_s):
        return None
    return parse_ranges(values[0], size)


def _if_range_holds(values: list[str], validators: Validators, now_s: float) -> bool:
    if not values:
        return True
    if len(values) != 1:
        return False
    value = values[0]
    if value.startswith('"'):
        return value == validators.etag
    modified_s = validators.modified_s
    return modified_s is not None and parse_date(value) == modified_s and modified_s < int(now_s)


def parse_ranges(value: str, size: int) -> list[ByteRange] | None:
    """A Range field, for a representation of `size` bytes; returns as `wanted_ranges`."""
    match = _RANGE_SET.fullmatch(value)
    if match is None:
        return None
    ranges: list[ByteRange] = []
    texts = [text for part in match[1].split(",") if (text := part.strip(" \t"))]
    for text in texts:
        bounds = _RANGE.fullmatch(text)
        if bounds is None or text == "-":
            return None
        first, last = bounds.groups()
        if not first:
            if not size and int(last):
                return None  # the last n of nothing are the whole, and no range can say so
            first, last = str(max(0, size - int(last))), ""
        elif last and int(last) < int(first):
            return None
        if int(first) < size:
            ranges.append(ByteRange(int(first), min(int(last or size), size - 1)))
    if not texts:
        return None
    ranges = _coalesced(ranges)
    return ranges if len(ranges) <= RANGES_LIMIT else None


def _coalesced(ranges: list[ByteRange]) -> list[ByteRange]:
    """The same bytes, each once; as they were if each was there once."""
    merged: list[ByteRange] = []
    for part in sorted(ranges):
        if merged and part.first <= merged[-1].last + 1:
            merged[-1] = ByteRange(merged[-1].first, max(merged[-1].last, part.last))
        else:
            merged.append(part)
    return ranges if len(merged) == len(ranges) else merged


def content_range(part: ByteRange | None, size: int) -> str:
    """The Content-Range of a part, or of an answer that none could be had (416)."""
    return f"bytes */{size}" if part is None else f"bytes {part.first}-{part.last}/{size}"

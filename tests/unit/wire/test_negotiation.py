"""Which content coding a client gets."""

from __future__ import annotations

import pytest

from pelotontx.wire.negotiation import choose_coding


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("*", "br"),
        ("br;q=0.5, gzip", "gzip"),
        ("br;q=0, gzip;q=0.001", "gzip"),
        ("br;q=0, *", "gzip"),
        ("gzip ; q=0.8 , br;q=0.8", "br"),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("gzip;q=0", ""),
        ("*;q=0", ""),
        ("identity", ""),
        ("deflate", ""),
        ("gzip;q=2", ""),
        ("gzip;q=", ""),
        ("gzip; level=9", ""),
        ("", ""),
        ("gzip," * 200, ""),
    ],
)
def test_coding(accept: str, coding: str) -> None:
    assert choose_coding(accept, ("br", "gzip")) == coding


def test_nothing_to_choose_from() -> None:
    assert choose_coding("gzip", ()) == ""

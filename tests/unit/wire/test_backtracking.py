"""Which patterns may take more than linear time."""

from __future__ import annotations

import re

import pytest

from pelotontx.wire.backtracking import EXPONENTIAL, growth


@pytest.mark.parametrize(
    "pattern",
    [
        r"^/(a+)+$",
        r"^/(a*)*$",
        r"^/(a|b*)*$",
        r"^/(a|ab|b)*$",
        r"^/(a|a)*$",
        r"^/(?:\w(?:|)b)*$",
        r"^/(\w+\s?)*$",
        r"^/(?:/.*)*$",
        r"^/(a?b?)*$",
        r"^/((?:x\w+)+)$",
        r"^/(.+)*\.html$",
        r"^/(a{1,50})+$",
        r"^/(a+){20}$",
        r"^/(?=(a+)+$)",
        r"^/([\d-]+|\d)+x$",
        r"^/(?:[^/]+/?)+$",
        r"^/(?:(?:a?)+b)+$",  # a turn without text is tried once, however greedy or lazy
        r"^/(?:(?:a?)+?b)+$",
        r"^/(?:(?>a?)+b)+$",
        r"^/(a*)(?:b?\1)*$",
        r"(?i)^/(?:ab|Ab)+$",
        r"^/(?i:(?:ab|Ab)+)$",
    ],
)
def test_ambiguous_loops_are_exponential(pattern: str) -> None:
    assert growth(pattern) == EXPONENTIAL


@pytest.mark.parametrize(
    "pattern",
    [
        r"^/$",
        r"^/hello/(\w+)$",
        r"^/(\d{4})/(\d\d)/([\w-]+)\.html$",
        r"^/([^/]+)/([^/]+)/([^/]+)/([^/]+)$",
        r"^/(?:[^/]+/)*$",
        r"^(?:/[^/]+)*/?$",
        r"^/(?:a|b)*$",
        r"^/(?:ab|cd)*e*$",
        r"^/(?:ab|Ab)+$",
        r"^/[0-9A-F]{8}-(?:[0-9A-F]{4}-){3}[0-9A-F]{12}$",
        r"^/(.*)$",
        r"^/(\w++)/(\w++)/(\w++)$",
        r"^/(?:ab|cd)*+e*$",
        r"^/(\w)\1$",
        r"(?i)^/up$|^/down/(.+)$",
        r"^/(\w+)-(\d+)$",
        "",
    ],
)
def test_others_are_linear(pattern: str) -> None:
    assert growth(pattern) == 1


@pytest.mark.parametrize(
    ("pattern", "power"),
    [
        (r"^/.*.*$", 2),
        (r"^/(.*)/(.*)$", 2),
        (r"^/(.*)/(.*)/(.*)x$", 3),
        (r"^/(.+)/([^/]+)$", 1),
        (r"^/\w*\d*\w*x$", 3),
        (r"^/(?:/a)*(?:/a)*$", 2),
        (r"^/(?=.*a.*b)", 2),
        (r"^/(a++)+$", 2),
        (r"^/(?>a+)+$", 2),
        (r"^/a*a*[^b]*+/", 3),
        (r"^/b+(?:b{3}){2,}b++b", 3),
        (r"^/a*a*(?>a+)b", 3),
        (r"^/a*a*(?=a*x)", 3),
        (r"^/a*a*(?!a*a*x)", 4),
        (r"^/(?:a(?=a*x))*", 2),
        (r"^/(a*)\1x", 2),
        (r"^/(?:[ac]\d|a)+a+x$", 2),
    ],
)
def test_loops_that_share_text_are_powers(pattern: str, power: int) -> None:
    assert growth(pattern) == power


def test_what_is_called_linear_ends() -> None:
    for pattern in (r"^(?:/[^/]+)*x$", r"^/(?:ab|cd)*e*x$", r"^/(\w++)/(\w++)x$"):
        assert growth(pattern) == 1
        for unit in ("a", "/a", "ab", "/"):
            assert re.match(pattern, "/" + unit * 1000 + "!") is None

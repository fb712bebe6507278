"""The routing table: which route a path leads to, and with which captures."""

from __future__ import annotations

import re
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pelotontx.wire.pattern import Pattern
from pelotontx.wire.routing import ROUTED_PATH_LIMIT, Route, Routes


def routes(*patterns: str) -> Routes[str]:
    return Routes(Route(pattern, pattern) for pattern in patterns)


def converting(*patterns: str) -> Routes[str]:
    parsed = [Pattern(pattern) for pattern in patterns]
    return Routes(Route(each.text, each.source, each.to_python) for each in parsed)


class TestRoutes:
    def test_captures_become_arguments(self) -> None:
        table = routes(r"^/$", r"^/hello/(\w+)$", r"^/(\d+)/(\d+)$", r"^/none/(a)?$")
        assert table.match("/") == (r"^/$", (), {})
        assert table.match("/hello/bob") == (r"^/hello/(\w+)$", ("bob",), {})
        assert table.match("/1/22") == (r"^/(\d+)/(\d+)$", ("1", "22"), {})
        assert table.match("/none/") == (r"^/none/(a)?$", (None,), {})
        assert table.match("/hello/bob/") is None

    def test_named_captures_become_keywords(self) -> None:
        table = routes(r"^/(?P<year>\d+)/(\w+)/(?P<day>\d+)$", r"^/x/(?P<year>\w+)$")
        assert table.match("/7/may/1")[1:] == (("may",), {"year": "7", "day": "1"})  # type: ignore[index]
        assert table.match("/x/y")[1:] == ((), {"year": "y"})  # type: ignore[index]

    def test_first_route_that_matches_wins(self) -> None:
        both = r"^/(\w+)$", r"^/fixed$"
        assert routes(*both).match("/fixed") == (both[0], ("fixed",), {})
        assert routes(*reversed(both)).match("/fixed") == (both[1], (), {})
        assert routes(r"^/a$", r"^/a$").match("/a") == (r"^/a$", (), {})

    def test_patterns_that_cannot_be_joined_keep_their_place(self) -> None:
        table = routes(
            r"^/a(\d)$", r"^/(\w)(\w)\1$", r"(?i)^/UP$", r"^/(\w+)$", r"^/(?P<a>.)-(?P=a)$"
        )
        assert table.match("/a1") == (r"^/a(\d)$", ("1",), {})
        assert table.match("/xyx") == (r"^/(\w)(\w)\1$", ("x", "y"), {})
        assert table.match("/up") == (r"(?i)^/UP$", (), {})
        assert table.match("/xyz") == (r"^/(\w+)$", ("xyz",), {})
        assert table.match("/q-q") == (r"^/(?P<a>.)-(?P=a)$", (), {"a": "q"})

    def test_alternatives_of_one_route_do_not_leak(self) -> None:
        table = routes(r"^/a$|^/b/(\w+)$", r"^/c/(\w+)$", "^/(?:x|y)z*$")
        assert table.match("/b/1") == (r"^/a$|^/b/(\w+)$", ("1",), {})
        assert table.match("/c/1") == (r"^/c/(\w+)$", ("1",), {})
        assert table.match("/yzz") == ("^/(?:x|y)z*$", (), {})

    def test_neighbours_with_common_stems_stay_apart(self) -> None:
        patterns = [rf"^/user{n}/(\w+)$" for n in range(20)]
        patterns += [r"^/us+er/(\w+)$", r"^/user/\d{2}$", r"^/u$", r"^/$", r"^/user/\d+x"]
        table = routes(*patterns)
        for path in ["/user7/a", "/user19/b", "/usser/c", "/user/12", "/u", "/", "/user/1xx"]:
            expected = next(pattern for pattern in patterns if re.match(pattern, path))
            match = table.match(path)
            assert match is not None
            assert match[0] == expected
        assert table.match("/user20/a") is None

    def test_dots_of_fixed_paths_are_literal_only_when_escaped(self) -> None:
        table = routes(r"^/robots\.txt$", r"^/a.b$")
        assert table.match("/robots.txt") is not None
        assert table.match("/robotsxtxt") is None
        assert table.match("/axb") is not None

    def test_long_paths_match_nothing(self) -> None:
        assert routes(r"^/(.*)$").match("/" + "a" * ROUTED_PATH_LIMIT) is None

    @given(
        st.lists(
            st.sampled_from(
                [
                    r"^/a$",
                    r"^/(\w+)$",
                    r"^/ab/(\d+)$",
                    r"^/a(b?)$",
                    r"^/ab",
                    r"^/a/|^/b",
                    "^/(?P<n>a)",
                    r"^/abc/(?P<x>\w)/(\w)$",
                    r"^/ab?c$",
                    r"^/(a)(?:b)*$",
                    r"/a\w",
                    r"^/ab/[12]+$",
                ]
            ),
            max_size=8,
        ),
        st.sampled_from(
            [
                "/a",
                "/ab",
                "/abc",
                "/ab/1",
                "/ab/12",
                "/a/",
                "/b",
                "/",
                "/abc/x/y",
                "/ac",
                "/abb",
                "x",
            ]
        ),
    )
    def test_joined_is_the_same_as_one_by_one(self, patterns: list[str], path: str) -> None:
        expected = None
        for pattern in patterns:
            found = re.match(pattern, path)
            if found is not None:
                named = found.groupdict()
                spots = set(found.re.groupindex.values())
                groups = enumerate(found.groups(), 1)
                expected = pattern, tuple(g for n, g in groups if n not in spots), named
                break
        assert routes(*patterns).match(path) == expected


class TestConverters:
    def test_captures_are_converted(self) -> None:
        table = converting("/n/{n:int}/{x:float}", "/u/{id:uuid}", "/p/{rest:path}", "/s/{a}")
        assert table.match("/n/7/1.5") == ("/n/{n:int}/{x:float}", (), {"n": 7, "x": 1.5})
        id_text = "0123456789abcdef0123456789ABCDEF"
        dashed = f"{id_text[:8]}-{id_text[8:12]}-{id_text[12:16]}-{id_text[16:20]}-{id_text[20:]}"
        assert table.match(f"/u/{dashed}") == ("/u/{id:uuid}", (), {"id": UUID(id_text)})
        assert table.match("/p/a/b") == ("/p/{rest:path}", (), {"rest": "a/b"})
        assert table.match("/s/x.y") == ("/s/{a}", (), {"a": "x.y"})
        for path in ("/n/7/x", "/n/-7/1", "/u/1", "/p/", "/s/", "/s/a/b"):
            assert table.match(path) is None

    def test_refusal_leads_to_the_next_route(self) -> None:
        def even(text: str) -> int:
            if int(text) % 2:
                raise ValueError
            return int(text)

        table = Routes(
            [
                Route(r"^/(?P<n>\d+)$", "even", {"n": even}),
                Route("^/1$", "one"),
                Route(r"^/(\d)$", "digit"),
                Route(r"^/(?P<n>\d+)$", "number", {"n": int}),
            ]
        )
        assert table.match("/2") == ("even", (), {"n": 2})
        assert table.match("/1") == ("one", (), {})
        assert table.match("/3") == ("digit", ("3",), {})
        assert table.match("/33") == ("number", (), {"n": 33})
        assert Routes([Route("^/(?P<n>.)$", "x", {"n": even})]).match("/a") is None

    def test_group_that_is_not_there_is_not_converted(self) -> None:
        table = converting("^/page(?:/{n:int})?$")
        assert table.match("/page") == ("^/page(?:/{n:int})?$", (), {"n": None})
        assert table.match("/page/3") == ("^/page(?:/{n:int})?$", (), {"n": 3})

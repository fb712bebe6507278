"""What stands in a route, forwards and backwards."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.wire.pattern import Converter, Pattern


class TestReading:
    def test_regular_expressions_stay_as_they_are(self) -> None:
        for source in (r"^/a{2}(\d{1,3})[{x}]\{y\}$", r"(?i)^/up$", r".*\.html", "^/a|^/b"):
            assert Pattern(source).text == source

    def test_slash_at_the_start_means_the_whole_path(self) -> None:
        assert Pattern("/").text == "^/$"
        assert Pattern("/a|/b").text == "^(?:/a|/b)$"
        assert Pattern("/a").regex.match("/ab") is None

    def test_placeholders_are_named_groups(self) -> None:
        assert Pattern("/{a}/{b_2:int}").text == "^/(?P<a>[^/]+)/(?P<b_2>[0-9]+)$"

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("/{a:nothing}", "there is no converter nothing"),
            ("/{a:int(3)}", "is not {name} or {name:converter}"),
            ("/{a b}", "is not {name} or {name:converter}"),
            ("/{a}/{a:int}", "stands twice"),
            ("/<int:number>", "<int:number> in /<int:number>: placeholders are {name} or"),
            ("/a/<name>", "placeholders are {name} or {name:int}"),
            ("hello", "'hello' matches no path: paths begin with a slash"),
            ("^hello|^b", "paths begin with a slash"),
            ("{name}/", "paths begin with a slash"),
            ("", "paths begin with a slash"),
        ],
    )
    def test_errors_say_what_is_wrong(self, source: str, said: str) -> None:
        with pytest.raises(ValueError, match=re.escape(said)):
            Pattern(source)

    def test_whatever_may_match_a_path_is_taken(self) -> None:
        for source in ("{rest:path}", "a|/b", "(?=/a).*", "(?P<all>.*)", r"(?:\w+)?/x", "(?!/a)"):
            assert Pattern(source).source == source

    def test_exponential_pattern_is_refused(self) -> None:
        with pytest.raises(ValueError, match="may take for ever"):
            Pattern("^/(a+)+$")
        with pytest.raises(ValueError, match="may take for ever"):
            Pattern("^/.*.*.*.*.*x$")
        assert Pattern("^/(a++)+$").path_limit is None

    def test_pattern_whose_loops_share_text_is_bounded(self) -> None:
        pattern = Pattern("^/(.*)/(.*)/(.*)x$|^/y$")
        assert pattern.path_limit == 228
        for text in (pattern.text, pattern.under("/shop")):
            start = "/shop" if text != pattern.text else ""
            for body, matches in (
                ("/a/b/x", True),
                ("/" * 227 + "x", True),
                ("/" * 228 + "x", False),
            ):
                assert (re.match(text, start + body) is not None) == matches
            assert re.match(text, start + "/y") is not None
        assert Pattern("(?i)^/.*.*.*X$").regex.match("/aaax") is not None

    @pytest.mark.parametrize(
        ("source", "path", "below"),
        [
            ("^/$", "/", "/shop/"),
            ("^/a$|^/b/(.)$", "/b/x", "/shop/b/x"),
            ("^(?:^/a|/b)[|^]$", "/a^", "/shop/a^"),
            (r"(?i)^/UP$", "/up", "/shop/up"),
            ("/a", "/a", "/shop/a"),
            (r"/\w+/(?P<x>.)", "/b/c", "/shop/b/c"),
        ],
    )
    def test_below_a_prefix_it_matches_the_same(self, source: str, path: str, below: str) -> None:
        pattern = Pattern(source)
        found = re.match(pattern.under("/shop"), below)
        plain = pattern.regex.match(path)
        assert plain is not None
        assert found is not None
        assert found.groups() == plain.groups()
        assert re.match(pattern.under("/shop"), path) is None
        assert re.match(pattern.under("/sh.p"), below) is None


class TestReversing:
    @pytest.mark.parametrize(
        ("source", "values", "named", "path"),
        [
            ("^/$", (), {}, "/"),
            ("/robots.txt", (), {}, "/robots.txt"),
            (r"^/a\.b\-c/?$", (), {}, "/a.b-c"),
            ("/{a}/{n:int}", (), {"a": "x y", "n": 3}, "/x%20y/3"),
            ("/{a}", (), {"a": "é?#%&"}, "/%C3%A9%3F%23%25&"),
            ("/{rest:path}", (), {"rest": "a/b c"}, "/a/b%20c"),
            ("/{x:float}", (), {"x": 1e21}, "/1000000000000000000000.0"),
            ("/{x:float}", (), {"x": 0.25}, "/0.25"),
            ("/{id:uuid}", (), {"id": UUID(int=1)}, "/00000000-0000-0000-0000-000000000001"),
            (r"^/(\d{4})/(?P<m>\d\d)/(\w+)$", (2024, "x"), {"m": "07"}, "/2024/07/x"),
            ("^/(.*)$", ("/evil.example",), {}, "/%2Fevil.example"),
        ],
    )
    def test_values_give_the_path(
        self, source: str, values: tuple[Any, ...], named: dict[str, Any], path: str
    ) -> None:
        assert Pattern(source).path_for(values, named) == path

    @pytest.mark.parametrize(
        ("source", "values", "named", "said"),
        [
            ("/{a}", (), {}, "needs a value for a"),
            (r"^/(\d)$", (), {}, "needs a value for each of its groups"),
            ("/{a}", (), {"a": 1, "b": 2}, "no place for b"),
            ("/", (5,), {}, "no place for 5"),
            ("/{n:int}", (), {"n": "x"}, "'x' does not fit n"),
            ("/{n:int}", (), {"n": -1}, "'-1' does not fit n"),
            ("/{x:float}", (), {"x": "y"}, "'y' does not fit"),
            ("/{a}", (), {"a": "b/c"}, "'b/c' does not fit a"),
            ("/{a}", (), {"a": ""}, "'' does not fit a"),
            ("/{a:path}", (), {"a": "b/../c"}, "'b/../c' does not fit a"),
            (r"^/a+$", (), {}, "cannot be reversed: + may be many things"),
            (r"^/\d$", (), {}, r"cannot be reversed: \d may be many things"),
            (r"^/(?:a|b)$", (), {}, "cannot be reversed: (?:a|b) may be many things"),
            (r"^/((a)b)$", ("ab",), {}, "cannot be reversed: ((a)b) may be many things"),
            (r"^/[ab]$", (), {}, "cannot be reversed: [ab] may be many things"),
            (r"^/(\w+)\b(x)$", ("a", "x"), {}, "cannot be reversed"),
        ],
    )
    def test_errors_say_what_is_wrong(
        self, source: str, values: tuple[Any, ...], named: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(said)):
            Pattern(source).path_for(values, named)

    def test_converter_makes_the_text(self) -> None:
        kinds = {"hex": Converter("[0-9a-f]+", lambda text: int(text, 16), lambda n: f"{n:x}")}
        pattern = Pattern("/{n:hex}", kinds)
        assert pattern.path_for((), {"n": 255}) == "/ff"
        assert pattern.to_python["n"]("ff") == 255

    @given(st.text(min_size=1), st.integers(min_value=0), st.uuids())
    def test_what_is_made_is_matched(self, name: str, number: int, id_: UUID) -> None:
        pattern = Pattern("/{name}/{number:int}/{id:uuid}")
        values = {"name": name, "number": number, "id": id_}
        try:
            path = pattern.path_for((), values)
        except (ValueError, UnicodeEncodeError):
            assert "/" in name or name in (".", "..") or not name.isprintable()
            return
        found = pattern.regex.match(unquote(path))
        assert found is not None
        assert found["name"] == name
        assert pattern.to_python["number"](found["number"]) == number
        assert pattern.to_python["id"](found["id"]) == id_

import pytest

from pelotontx.wire.glob import GlobTable, glob_match


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("*", ["", "a", "a.b\n"], []),
        ("news.*", ["news.", "news.art"], ["news", "xnews.a"]),
        ("h?llo", ["hello", "hallo"], ["hllo", "heello"]),
        ("h[ae]llo", ["hello", "hallo"], ["hillo"]),
        ("h[^e]llo", ["hallo"], ["hello"]),
        ("h[a-c]llo", ["hbllo"], ["hdllo"]),
        ("h[c-a]llo", ["hbllo"], ["hdllo"]),
        (r"h\*llo", ["h*llo"], ["hello"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a**b", ["ab", "axyb"], ["a"]),
        ("[]]", [], ["]"]),
        (r"[\]x]", ["]", "x"], ["y"]),
        ("(a|b)+", ["(a|b)+"], ["a"]),
        ("[a", ["a"], ["b"]),
    ],
)
def test_globs_match_as_in_redis(glob: str, matching: list[str], other: list[str]) -> None:
    for name in matching:
        assert glob_match(glob, name), name
    for name in other:
        assert not glob_match(glob, name), name


def test_no_glob_takes_more_than_its_length_times_the_names() -> None:
    assert not glob_match("*a" * 20 + "*b", "a" * 250)


class TestTable:
    def test_the_first_that_matches_decides(self) -> None:
        table = GlobTable([("shop.*", 1), ("*", 2)], 3)
        assert [table.find(name) for name in ("shop.price", "other", "shop.price")] == [1, 2, 1]
        assert GlobTable([("shop.*", 1)], 3).find("other") == 3

    def test_names_do_not_fill_memory(self) -> None:
        table = GlobTable([("1*", "one")], "other")
        for n in range(5000):
            assert table.find(str(n)) == ("one" if str(n)[0] == "1" else "other")
        assert len(table._found) <= 1000

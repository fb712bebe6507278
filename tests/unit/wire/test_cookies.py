"""What may stand in a Set-Cookie field, and what is read from a Cookie field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import text

from pelotontx.errors import LocalProtocolError
from pelotontx.wire.cookies import COOKIE_BYTES, read_cookies, set_cookie_value


def test_defaults_are_the_careful_ones() -> None:
    assert set_cookie_value("a", "b") == "a=b; Path=/; Secure; HttpOnly; SameSite=Lax"


def test_every_attribute_is_said() -> None:
    value = set_cookie_value(
        "a",
        "",
        max_age_s=60,
        path="/x y/",
        domain="example.org",
        secure=False,
        http_only=False,
        same_site="Strict",
    )
    assert value == "a=; Max-Age=60; Path=/x y/; Domain=example.org; SameSite=Strict"
    assert set_cookie_value("a", "b", max_age_s=-5, path="", same_site="") == (
        "a=b; Max-Age=0; Secure; HttpOnly"
    )


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a;", "a,b", 'a"', "é", "a\r\nb", "(a)", "a\0"])
def test_names_are_tokens(name: str) -> None:
    with pytest.raises(LocalProtocolError):
        set_cookie_value(name, "b")


@pytest.mark.parametrize(
    "value", [" ", "a b", "a;b", "a,b", 'a"b', "a\\b", "é", "a\r\n", "\0", "\x7f"]
)
def test_values_are_what_browsers_give_back_unchanged(value: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        set_cookie_value("a", value)
    assert value not in str(caught.value) or value == " "


def test_all_visible_characters_but_five_are_values() -> None:
    value = "".join(map(chr, range(0x21, 0x7F)))
    for forbidden in '",;\\':
        value = value.replace(forbidden, "")
    assert set_cookie_value("a", value).startswith(f"a={value}; ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "x"},
        {"path": "/;Domain=evil"},
        {"path": "/\r\n"},
        {"path": "/é"},
        {"domain": ".example.org"},
        {"domain": "example.org;"},
        {"domain": "example org"},
        {"domain": "-a"},
        {"same_site": "lax"},
        {"same_site": "Lax; Domain=evil"},
        {"same_site": "None", "secure": False},
    ],
)
def test_attributes_that_browsers_misread_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        set_cookie_value("a", "b", **wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("__Host-a", {"secure": False}),
        ("__Host-a", {"path": "/x"}),
        ("__Host-a", {"path": ""}),
        ("__Host-a", {"domain": "example.org"}),
        ("__host-a", {"domain": "example.org"}),
        ("__Secure-a", {"secure": False}),
    ],
)
def test_prefixes_are_promises(name: str, wrong: dict[str, Any]) -> None:
    assert set_cookie_value(name, "b")
    with pytest.raises(LocalProtocolError):
        set_cookie_value(name, "b", **wrong)


def test_cookie_longer_than_browsers_keep_is_refused() -> None:
    assert set_cookie_value("a", "b" * (COOKIE_BYTES - 1))
    with pytest.raises(LocalProtocolError):
        set_cookie_value("a", "b" * COOKIE_BYTES)


@pytest.mark.parametrize(
    ("field", "cookies"),
    [
        ("a=1; b=2", {"a": "1", "b": "2"}),
        (" a = 1 ;;b=2;", {"a": "1", "b": "2"}),
        ("a=1; a=2", {"a": "1"}),  # the one for the longer path comes first
        ('a="x y"', {"a": "x y"}),
        (r'a="say \"\054\""', {"a": 'say ","'}),  # as http.cookies writes them
        (r"a=\054", {"a": r"\054"}),
        ('a={"b":1,"c":[2]}', {"a": '{"b":1,"c":[2]}'}),
        ("a=1 2; b==3=", {"a": "1 2", "b": "=3="}),
        ('a="; b="', {"a": '"', "b": '"'}),
        ("a=", {"a": ""}),
        ("a; =1; a b=2; \xe9=3; c=\xe9", {"c": "\xe9"}),
        ("path=/x; secure=1", {"path": "/x", "secure": "1"}),
        ("", {}),
    ],
)
def test_cookies_are_read(field: str, cookies: dict[str, str]) -> None:
    assert read_cookies([field]) == cookies


def test_cookies_of_several_fields_are_one_list() -> None:
    assert read_cookies(["a=1; b=2", "b=3; c=4"]) == {"a": "1", "b": "2", "c": "4"}


@given(text())
def test_any_cookie_field_is_read(field: str) -> None:
    read_cookies([field])

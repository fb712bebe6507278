"""How sessions lie in the store, and the cookie."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.wire.session import CookieSigner, decode_value, encode_value, session_key

ID = "0123456789abcdefghijkl"
# The signature is OpenSSL's.
GOLDEN = f"{ID}.1700000000.gWLV3F_umjgNdU-2FOzNVVX823sNlelakMRAsgZwSSs"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_the_key_is_tempests() -> None:
    assert session_key(ID) == f"session:{ID}"


def test_a_field_is_an_array_of_one_value() -> None:
    assert encode_value({"a": ["é", 1, None, True]}) == '[{"a":["é",1,null,true]}]'.encode()
    assert decode_value(b' [ "0012" ] ') == "0012"


@given(JSON)
def test_every_json_value_comes_back_and_others_read_it_alike(value: Any) -> None:
    field = encode_value(value)
    assert decode_value(field) == value
    assert json.loads(field) == [value]


@pytest.mark.parametrize("value", [(1,), {1}, b"a", object(), {1: 2}, [("a",)], {"a": {None: 1}}])
def test_what_json_does_not_have_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="must be"):
        encode_value(value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [nan, [inf], "\ud800", {"\ud800": 1}, 2**64, nested(33)])
def test_what_other_readers_would_stumble_over_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_value(value)


def test_as_deep_as_allowed_is_allowed() -> None:
    assert decode_value(encode_value(nested(32))) == nested(32)


@pytest.mark.parametrize(
    "field", [b"", b"1", b"[]", b"[1,2]", b"{}", b"[1", b"[\xff]", b'["\xff"]', b"[" * 100_000]
)
def test_what_is_no_array_of_one_is_a_value_error(field: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_value(field)


class TestCookies:
    signer = CookieSigner(["secret"], "session")

    def test_the_form_is_as_documented(self) -> None:
        assert self.signer.sign(ID, 1_700_000_000) == GOLDEN

    def test_its_own_is_read(self) -> None:
        assert self.signer.read(GOLDEN) == (ID, 1_700_000_000)

    @given(st.integers(0, len(GOLDEN) - 1), st.sampled_from("0123456789ABCabc._-~ é"))
    def test_one_character_changed_is_none_of_ours(self, place: int, character: str) -> None:
        changed = GOLDEN[:place] + character + GOLDEN[place + 1 :]
        assert (self.signer.read(changed) is None) == (changed != GOLDEN)

    @given(st.text())
    def test_any_text_is_none_of_ours(self, text: str) -> None:
        assert self.signer.read(text) is None

    @pytest.mark.parametrize("end", [" ", "\n", ".x", "="])
    def test_nothing_may_follow(self, end: str) -> None:
        assert self.signer.read(GOLDEN + end) is None

    def test_another_name_or_secret_makes_another_signature(self) -> None:
        assert CookieSigner(["secret"], "other").read(GOLDEN) is None
        assert CookieSigner(["another"], "session").read(GOLDEN) is None

    def test_the_first_secret_signs_and_all_are_good(self) -> None:
        both = CookieSigner(["new", "secret"], "session")
        assert both.read(GOLDEN) == (ID, 1_700_000_000)
        cookie = both.sign(ID, 1)
        assert CookieSigner(["new"], "session").read(cookie) == (ID, 1)
        assert self.signer.read(cookie) is None

    @pytest.mark.parametrize("secrets", [[], [""], ["good", ""]])
    def test_an_empty_secret_is_refused(self, secrets: list[str]) -> None:
        with pytest.raises(ValueError, match="missing"):
            CookieSigner(secrets, "session")

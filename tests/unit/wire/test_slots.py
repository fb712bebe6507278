"""Hash slots, slot maps and redirects of a Redis Cluster."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.wire.juggler import calls_key, results_key
from pelotontx.wire.slots import SLOTS, Redirect, SlotMap, key_slot


def crc16(data: bytes) -> int:
    """The definition, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
        crc &= 0xFFFF
    return crc


class TestKeySlot:
    @pytest.mark.parametrize(
        ("key", "slot"),
        [
            ("123456789", 12739),  # the specification's example
            ("foo", 12182),
            ("foo{bar}", 5061),
            ("bar", 5061),
            ("{user1000}.following", 3443),
            ("user1000", 3443),
            ("", 0),
        ],
    )
    def test_known_slots(self, key: str, slot: int) -> None:
        assert key_slot(key) == key_slot(key.encode()) == slot

    def test_a_uri_with_braces_has_the_tag_that_redis_sees(self) -> None:
        assert calls_key("{shop}.price") == "juggler:calls:{{shop}.price}"
        assert key_slot(calls_key("{shop}.price")) == crc16(b"{shop") % SLOTS
        assert key_slot(calls_key("{}")) == crc16(b"{") % SLOTS
        assert key_slot(calls_key("}a")) == crc16(b"juggler:calls:{}a}") % SLOTS
        assert key_slot(results_key("id")) == crc16(b"id") % SLOTS

    @given(st.text("ab{}é", max_size=12))
    def test_any_key(self, key: str) -> None:
        tag = re.match(r"[^{]*\{([^}]+)\}", key)
        assert key_slot(key) == crc16((tag[1] if tag else key).encode()) % SLOTS


A, B, C = ("a", 1), ("b", 2), ("c", 3)


def node(host: bytes | None, port: int) -> list[Any]:
    return [host, port, b"id", [b"hostname", b"x"]]


class TestSlotMap:
    def test_a_reply_is_read(self) -> None:
        slots = SlotMap.parse(
            [
                [0, 99, node(b"a", 1), node(b"c", 3)],
                [100, 16383, node(b"b", 2)],
            ],
            "asked",
        )
        assert (slots.masters[0], slots.masters[99], slots.masters[100]) == (A, A, B)
        assert len(slots.masters) == SLOTS
        assert slots.holders == {A, B}
        assert slots.nodes == {A, B, C}
        assert slots.is_whole

    @pytest.mark.parametrize("host", [None, b"", b"?"])
    def test_an_unknown_host_is_the_one_that_was_asked(self, host: bytes | None) -> None:
        slots = SlotMap.parse([[0, 0, node(host, 7)]], "asked")
        assert slots.masters[0] == ("asked", 7)

    def test_what_nobody_holds_is_seen(self) -> None:
        slots = SlotMap.parse([[1, 16383, node(b"a", 1)]], "asked")
        assert slots.masters[0] is None
        assert not slots.is_whole
        assert slots.moved(0, B).is_whole
        assert not SlotMap().is_whole

    def test_a_move_counts_at_once(self) -> None:
        before = SlotMap.parse([[0, 16383, node(b"a", 1), node(b"b", 2)]], "asked")
        after = before.moved(5, B)
        assert (after.masters[4], after.masters[5], after.masters[6]) == (A, B, A)
        assert after.holders == {A, B}
        assert after.replicas == frozenset()
        assert before.masters[5] == A

    @pytest.mark.parametrize(
        "reply",
        [
            7,
            None,
            [7],
            [[0, 1]],
            [[0, SLOTS, node(b"a", 1)]],
            [[-1, 5, node(b"a", 1)]],
            [[5, 4, node(b"a", 1)]],
            [[0, 1, [b"a"]]],
            [[0, 1, [b"a", b"x"]]],
            [[0, 1, [7, 1]]],
            [[b"0", 1, node(b"a", 1)]],
        ],
    )
    def test_anything_else_is_refused(self, reply: Any) -> None:
        with pytest.raises(ValueError, match="no reply to CLUSTER SLOTS"):
            SlotMap.parse(reply, "asked")


class TestRedirect:
    @pytest.mark.parametrize(
        ("error", "redirect"),
        [
            ("MOVED 3999 127.0.0.1:6381", Redirect(3999, ("127.0.0.1", 6381), False)),
            ("ASK 3999 node.example:6381", Redirect(3999, ("node.example", 6381), True)),
            ("MOVED 1 :6381", Redirect(1, ("", 6381), False)),
            ("MOVED 1 ::1:6381", Redirect(1, ("::1", 6381), False)),
            ("MOVED 1 host", None),
            ("MOVED x host:1", None),
            ("MOVEDX 1 host:1", None),
            ("TRYAGAIN Multiple keys request during rehashing of slot", None),
            ("", None),
        ],
    )
    def test_parse(self, error: str, redirect: Redirect | None) -> None:
        assert Redirect.parse(error) == redirect

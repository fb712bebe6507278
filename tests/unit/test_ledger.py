"""The kill tests' ledger tells what must not happen from what may."""

from __future__ import annotations

import pytest

from tests.support.ledger import Ledger

UNAVAILABLE = "the broker is unavailable"
Steps = list[tuple[str, ...]]


def ledger_of(steps: Steps, executed: str) -> Ledger:
    ledger = Ledger()
    ledger.sent("a")
    for name, *arguments in steps:
        getattr(ledger, name)("a", *arguments)
    ledger.executed(executed.split())
    return ledger


@pytest.mark.parametrize(
    ("steps", "executed"),
    [
        ([("acked",), ("answered", "a")], "a"),
        ([("acked",), ("time_is_over",)], ""),
        ([("acked",), ("time_is_over",)], "a"),
        ([("acked",), ("lost",)], "a"),
        ([("lost",)], "a"),
        ([("lost",)], ""),
        ([("refused", "list capacity exceeded")], ""),
        ([("refused", UNAVAILABLE)], "a"),
        ([("acked",), ("answered", "a"), ("lost",)], "a"),
    ],
)
def test_what_may_happen_passes(steps: Steps, executed: str) -> None:
    ledger_of(steps, executed).check()


@pytest.mark.parametrize(
    ("steps", "executed"),
    [
        ([], ""),  # silence
        ([("time_is_over",)], ""),  # neither ACK nor NACK
        ([("acked",)], ""),  # no end
        ([("answered", "a")], "a"),  # before its ACK
        ([("acked",), ("acked",), ("answered", "a")], "a"),
        ([("acked",), ("answered", "b")], "a"),  # another call's
        ([("acked",), ("answered", "a"), ("answered", "a")], "a"),
        ([("acked",), ("time_is_over",), ("answered", "a")], "a"),
        ([("acked",), ("refused", UNAVAILABLE)], ""),
        ([("refused", UNAVAILABLE), ("answered", "a")], "a"),
        ([("refused", "list capacity exceeded")], "a"),
        ([("acked",), ("answered", "a")], "a a"),  # run twice
        ([("lost",)], "a a"),
        ([("acked",), ("answered", "a")], ""),  # run by nobody
        ([("acked",), ("answered", "a")], "a x"),  # a call that nobody made
    ],
)
def test_what_must_not_happen_fails(steps: Steps, executed: str) -> None:
    ledger = ledger_of(steps, executed)
    with pytest.raises(AssertionError):
        ledger.check()

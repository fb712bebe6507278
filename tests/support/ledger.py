"""What became of each call, and whether that may be: the invariants under faults.

Of a caller's view: A are the calls that were ACKed and whose connection lasted, U those whose fate
the caller cannot know (the connection ended, or the server could not tell whether Redis has them),
R those with a result, X those whose time went by. E are the executions, noted by the callees
themselves, outside of Redis. Then, in at-most-once mode::

    A in R or X    R and X disjoint    one result an id    E in A or U    no execution twice

An id is the call's uuid and its args, so that an answer that went to the wrong call shows too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto

# NACKs that say for certain that a call was not stored have other texts.
_UNKNOWN = ("the broker is unavailable", "the broker did not answer in time")


class State(Enum):
    """Where a call stands, as its caller knows it."""

    SENT = auto()
    ACKED = auto()
    REFUSED = auto()
    ANSWERED = auto()
    EXPIRED = auto()
    UNKNOWN = auto()


OPEN = frozenset({State.SENT, State.ACKED})


class Ledger:
    """All calls of a run.

    Attributes:
        states: where each call stands, by id.
        faults: what must not have happened, in words.
    """

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.faults: list[str] = []
        self._executions: Counter[str] = Counter()

    def sent(self, id_: str) -> None:
        """A caller sends a call; its args are its id."""
        assert id_ not in self.states
        self.states[id_] = State.SENT

    def is_open(self, id_: str) -> bool:
        """Whether the caller still waits for something."""
        return self.states[id_] in OPEN

    def acked(self, id_: str) -> None:
        """An ACK came."""
        self._move(id_, {State.SENT}, State.ACKED)

    def refused(self, id_: str, message: str) -> None:
        """A NACK came."""
        unknown = message in _UNKNOWN
        self._move(id_, {State.SENT}, State.UNKNOWN if unknown else State.REFUSED)

    def answered(self, id_: str, result: object) -> None:
        """A RES came: only behind an ACK, once, in time, and it is this call's."""
        if result != id_:
            self.faults.append(f"{id_}: the result is {result!r}")
        self._move(id_, {State.ACKED}, State.ANSWERED)

    def time_is_over(self, id_: str) -> None:
        """The caller waits no more: an ACKed call has expired, a silent server is a fault."""
        if self.states[id_] is State.ACKED:
            self.states[id_] = State.EXPIRED
        elif self.states[id_] is State.SENT:
            self.faults.append(f"{id_}: neither ACK nor NACK in its time")
            self.states[id_] = State.UNKNOWN

    def lost(self, id_: str) -> None:
        """The caller's connection ended."""
        if self.states[id_] in OPEN:
            self.states[id_] = State.UNKNOWN

    def executed(self, ids: Iterable[str]) -> None:
        """What a callee has noted: an id for each execution."""
        self._executions.update(ids)

    def count(self, state: State) -> int:
        """How many calls stand there."""
        return sum(each is state for each in self.states.values())

    def check(self) -> None:
        """Fails with everything that breaks an invariant."""
        faults = [*self.faults]
        for id_, times in self._executions.items():
            state = self.states.get(id_)
            if times > 1:
                faults.append(f"{id_}: executed {times} times, {state}")
            if state is None or state is State.REFUSED:
                faults.append(f"{id_}: executed, but {state}")
        for id_, state in self.states.items():
            if state in OPEN:
                faults.append(f"{id_}: no end, {state}")
            if state is State.ANSWERED and id_ not in self._executions:
                faults.append(f"{id_}: answered without an execution")
        summary = f"{len(faults)} faults; {self}\n"
        assert not faults, summary + "\n".join(faults[:20])

    def __str__(self) -> str:
        counts = Counter(state.name.lower() for state in self.states.values())
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return f"{len(self.states)} calls: {told}; {self._executions.total()} executions"

    def _move(self, id_: str, before: set[State], after: State) -> None:
        state = self.states.get(id_)
        if state in before:
            self.states[id_] = after
        else:
            self.faults.append(f"{id_}: {after.name} when it was {state}")

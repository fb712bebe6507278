r"""How the time to match a regular expression may grow with the text. Pure.

`re` goes back and tries again, and a stranger chooses the path: ``^/(a+)+$`` takes 2**n steps for
``/aaa...!``, ``^/(.*)/(.*)/(.*)x$`` the cube of n. What is looked for here is ambiguity: two ways
through the pattern for the same text. Inside of a loop each turn doubles the ways (exponential);
loops one after the other that can share their text give a power of its length.

The pattern is seen as its positions (the places that take a character) and what may follow each;
`re`'s own parser reads it. For `wire.pattern`, when a route is added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

#: `growth` of a pattern that takes exponential time.
EXPONENTIAL: Final = 99

#: Characters that patterns tell apart; one beyond ASCII stands for all of them.
_ALPHABET: Final = frozenset(map(chr, range(32, 127))) | {"é"}
_LETTERS: Final = frozenset(filter(str.isalpha, _ALPHABET)) - {"é"}
#: Repetitions up to so often are written out; more are as bad as any number.
_WRITTEN_OUT: Final = 8

_CLASSES: Final = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


def growth(pattern: str) -> int:
    """The power of the text's length that matching may take: 1, 2, ..., or `EXPONENTIAL`.

    It errs on the careful side: what is told may not be reached.

    Raises:
        re.error: not a regular expression.
    """
    parsed = _parser.parse(pattern)
    graph = _Graph(folds=bool(parsed.state.flags & re.IGNORECASE))
    graph.add(parsed)
    return max(1, graph.cost())


def may_begin_with(pattern: str, character: str) -> bool:
    """Whether a text that begins with this ASCII character may match; True if one is in doubt.

    Raises:
        re.error: not a regular expression.
    """
    parsed = _parser.parse(pattern)
    graph = _Graph(folds=bool(parsed.state.flags & re.IGNORECASE))
    return graph.may_begin_with(graph.add(parsed), character)


@dataclass(slots=True)
class _Part:
    """A piece of the pattern: where it may begin and end, and in how many ways it may be empty.

    More than two ways count as two. What can be reached in two ways stands in a list twice.
    """

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    empty: int = 1


class _Graph:
    """Positions, and how often each may follow each; `folds`: case does not count."""

    def __init__(self, *, folds: bool) -> None:
        self._folds = folds
        self._sets: list[frozenset[str]] = []
        self._follow: list[Counter[int]] = []
        self._weights: dict[int, int] = {}  # powers of what is matched by itself

    # From the parsed pattern.

    def add(self, items: Iterable[tuple[Any, Any]]) -> _Part:
        """Adds a sequence of parsed items."""
        whole = _Part()
        for kind, value in items:
            whole = self._joined(whole, self._item(kind, value))
        return whole

    def _item(self, kind: Any, value: Any) -> _Part:
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            return self._position(_characters(kind, value))
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeated(*value)
        if kind is sre.SUBPATTERN:
            _, added, _, inner = value
            self._folds |= bool(added & re.IGNORECASE)  # from here on, which is careful enough
            return self.add(inner)
        if kind is sre.BRANCH:
            return self._branch(value[1])
        if kind is sre.GROUPREF_EXISTS:
            return self._branch([branch or [] for branch in value[1:]])
        if kind is sre.GROUPREF:
            return self._repeated(0, _WRITTEN_OUT + 1, [(sre.ANY, None)])
        if kind in (sre.ATOMIC_GROUP, sre.POSSESSIVE_REPEAT, sre.ASSERT, sre.ASSERT_NOT):
            return self._closed(kind, value)
        return _Part()  # an anchor

    def _position(self, characters: frozenset[str]) -> _Part:
        number = len(self._sets)
        if self._folds:
            characters |= {char.swapcase() for char in characters & _LETTERS}
        self._sets.append(characters)
        self._follow.append(Counter())
        return _Part([number], [number], empty=0)

    def _link(self, last: Sequence[int], first: Sequence[int]) -> None:
        for before in last:
            self._follow[before].update(first)

    def _joined(self, left: _Part, right: _Part) -> _Part:
        self._link(left.last, right.first)
        return _Part(
            left.first + right.first * left.empty,
            right.last + left.last * right.empty,
            min(2, left.empty * right.empty),
        )

    def _branch(self, branches: Iterable[Any]) -> _Part:
        parts = [self.add(branch) for branch in branches]
        return _Part(
            [first for part in parts for first in part.first],
            [last for part in parts for last in part.last],
            min(2, sum(part.empty for part in parts)),
        )

    def _repeated(self, least: int, most: int, items: Any) -> _Part:
        if most > _WRITTEN_OUT:
            part = self.add(items)
            self._link(part.last, part.first)
            if part.empty:  # what follows is tried before a last turn without text, and after it
                return _Part(part.first, [*set(part.last)] * 2, empty=2)
            return _Part(part.first, part.last, int(not least))
        whole = _Part()
        for turn in range(most):
            part = self.add(items)
            part.empty = min(2, part.empty + (turn >= least))
            whole = self._joined(whole, part)
        return whole

    def _closed(self, kind: Any, value: Any) -> _Part:
        """What is never tried in a second way once it has matched."""
        inner = _Graph(folds=self._folds)
        if kind is sre.POSSESSIVE_REPEAT:
            part = inner._repeated(*value)
        else:
            part = inner.add(value if kind is sre.ATOMIC_GROUP else value[1])
        characters: frozenset[str] = frozenset().union(*inner._sets)
        whole = _Part()
        if inner._sets and kind not in (sre.ASSERT, sre.ASSERT_NOT):
            whole = self._position(characters)
            whole.empty = part.empty
        power = inner.cost()
        if power:  # it is paid wherever one comes to it, matched or not: a loop that leads nowhere
            end = self._position(characters)
            self._link(end.last, end.first)
            self._weights[end.last[0]] = power
            whole.first += end.first
        return whole

    # What it tells.

    def may_begin_with(self, part: _Part, character: str) -> bool:
        """See the function of this name."""
        return bool(part.empty) or any(character in self._sets[number] for number in part.first)

    def cost(self) -> int:
        """As `growth`, and 0 if nothing is repeated."""
        reach = [self._reached(number) for number in range(len(self._sets))]
        loops = {
            frozenset(other for other in reach[number] if number in reach[other])
            for number in range(len(self._sets))
            if number in reach[number]
        }
        if any(self._doubles(loop) for loop in loops):
            return EXPONENTIAL
        ends = self._weights  # behind all others: nothing is reached from there
        return self._power(sorted(loops, key=lambda loop: (min(loop) in ends, min(loop))))

    def _reached(self, start: int, within: frozenset[str] = _ALPHABET) -> set[int]:
        """The positions behind one, by way of those that can take one of `within`."""
        found: set[int] = set()
        waiting = [start]
        while waiting:
            for number in self._follow[waiting.pop()]:
                if number not in found:
                    found.add(number)
                    if within & self._sets[number]:
                        waiting.append(number)
        return found

    def _doubles(self, loop: frozenset[int]) -> bool:
        """Whether a text leads around a loop in two ways."""
        for number in loop:
            if any(self._follow[number][other] > 1 for other in loop):
                return True
        ahead = {(one, other): self._steps(one, other, loop) for one in loop for other in loop}
        for number in loop:
            home = number, number
            away = _closure(ahead, home)
            if any(one != other and home in _closure(ahead, (one, other)) for one, other in away):
                return True
        return False

    def _steps(self, one: int, other: int, loop: frozenset[int]) -> list[tuple[int, int]]:
        """Where two readers of the same text may go from here."""
        return [
            (left, right)
            for left in self._follow[one].keys() & loop
            for right in self._follow[other].keys() & loop
            if self._sets[left] & self._sets[right]
        ]

    def _power(self, loops: list[frozenset[int]]) -> int:
        """The most loops in a row of which each can take over text from the one before."""
        texts = [frozenset().union(*(self._sets[number] for number in loop)) for loop in loops]
        weights = [self._weights.get(min(loop), 1) for loop in loops]
        longest = list(weights)
        for later, loop in enumerate(loops):
            for earlier in range(later):
                shared = texts[earlier] & texts[later]
                starts = loops[earlier] if shared else ()
                if any(self._reached(start, shared) & loop for start in starts):
                    longest[later] = max(longest[later], longest[earlier] + weights[later])
        return min(EXPONENTIAL, max(longest, default=0))


def _closure(
    ahead: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]
) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    waiting = [start]
    while waiting:
        for pair in ahead[waiting.pop()]:
            if pair not in found:
                found.add(pair)
                waiting.append(pair)
    return found


def _characters(kind: Any, value: Any) -> frozenset[str]:
    """What one position takes, of the alphabet; anything else is as the one beyond ASCII."""
    if kind is sre.ANY:
        return _ALPHABET
    if kind is sre.LITERAL:
        return frozenset({chr(value) if chr(value) in _ALPHABET else "é"})
    if kind is sre.NOT_LITERAL:
        return _ALPHABET - {chr(value)}
    if kind is sre.CATEGORY:
        return frozenset(filter(re.compile(_CLASSES[value]).match, _ALPHABET))
    if kind is sre.RANGE:
        low, high = value
        inside = frozenset(char for char in _ALPHABET if low <= ord(char) <= high)
        return inside | {"é"} if high > 126 else inside
    if value and value[0][0] is sre.NEGATE:
        return (_ALPHABET - _characters(kind, value[1:])) | {"é"}
    return frozenset().union(*(_characters(*item) for item in value))

"""The routing table: from a method's patterns to the first that matches a path. Pure.

`web.app` builds a `Routes` a method. All patterns of one are joined into one regular expression,
so that a hundred routes cost little more than one; fixed paths are looked up in a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

#: The longest path that is matched against routes: backtracking grows with it, names do not.
ROUTED_PATH_LIMIT = 2048

Target = TypeVar("Target")

_LITERAL = re.compile(r"(?:[^\\.^$*+?{}\[\]|()]|\\[^0-9A-Za-z])*", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NAMED = re.compile(r"\(\?P<\w+>")
#: What cannot be joined with other patterns: references by number or name, inline flags.
_UNJOINABLE = re.compile(r"\\[1-9]|\(\?P=|\(\?\(|\(\?[aiLmsux-]+[):]|\(\?\#")


#: A match: the route's target, positional captures, named captures.
Match = tuple[Target, tuple[Any, ...], dict[str, Any]]

_NONE: Mapping[str, Callable[[str], Any]] = {}


class Route(Generic[Target]):
    """One route: a pattern for the whole path, and what it leads to.

    Args:
        pattern: a regular expression, matched from the start of the path.
        target: what it leads to.
        to_python: converters of named captures that were made; a `ValueError` of one means that
            the route does not match.

    Raises:
        re.error: not a regular expression.
    """

    __slots__ = ("named", "pattern", "positional", "regex", "target", "to_python")

    def __init__(
        self, pattern: str, target: Target, to_python: Mapping[str, Callable[[str], Any]] = _NONE
    ) -> None:
        self.pattern = pattern
        self.target = target
        self.to_python = tuple(to_python.items())
        self.regex = re.compile(pattern)
        self.named = tuple(self.regex.groupindex.items())
        spots = set(self.regex.groupindex.values())
        self.positional = tuple(n for n in range(1, self.regex.groups + 1) if n not in spots)

    def match(self, path: str) -> Match[Target] | None:
        """This route's match, None if there is none."""
        found = self.regex.match(path)
        if found is None:
            return None
        named = {name: found[spot] for name, spot in self.named}
        if self.to_python and not _convert(named, self.to_python):
            return None
        return self.target, tuple([found[spot] for spot in self.positional]), named


def _convert(named: dict[str, Any], to_python: Iterable[tuple[str, Callable[[str], Any]]]) -> bool:
    """Converts captures in place; returns False if one is refused."""
    try:
        for name, convert in to_python:
            if named[name] is not None:
                named[name] = convert(named[name])
    except ValueError:
        return False
    return True


#: One alternative of a joined expression: the route's number, its target, the groups of positional
#: captures, named ones with their groups, converters.
_Alternative = tuple[
    int, Target, tuple[int, ...], tuple[tuple[str, int], ...], tuple[tuple[str, Any], ...]
]

#: What matches a path, the alternatives by `lastindex`, or the only one of a pattern that cannot
#: be joined.
_Part = tuple[Callable[[str], Any], dict[int, _Alternative[Target]], _Alternative[Target] | None]


class Routes(Generic[Target]):
    """Routes of one method, in order; the first that matches the path wins.

    Patterns are matched from the start of the path, as `re.match` does, and joined into one
    regular expression; paths without anything to capture are looked up in a table.

    Attributes:
        fixed: that table; a caller in a hurry looks there first, and then calls `search`.
    """

    def __init__(self, routes: Iterable[Route[Target]]) -> None:
        self.fixed: dict[str, Match[Target]] = {}
        self._parts: list[_Part[Target]] = []
        self._routes = list(routes)
        earlier: list[Route[Target]] = []
        joinable: list[tuple[int, Route[Target]]] = []
        for number, route in enumerate(self._routes):
            literal = _literal(route.pattern)
            if literal is not None and not any(other.regex.match(literal) for other in earlier):
                self.fixed.setdefault(literal, (route.target, (), {}))
                earlier.append(route)
                continue
            earlier.append(route)
            if _UNJOINABLE.search(route.pattern):
                self._join(joinable)
                joinable = []
                self._parts.append((route.regex.match, {}, _alternative(number, route, 0)))
            else:
                joinable.append((number, route))
        self._join(joinable)

    def _join(self, routes: list[tuple[int, Route[Target]]]) -> None:
        if not routes:
            return
        table: dict[int, _Alternative[Target]] = {}
        before = 0
        for number, route in routes:
            after = before + route.regex.groups + 1
            table[after] = _alternative(number, route, before)
            before = after
        # The empty group at an alternative's end closes last: `lastindex` names the alternative.
        patterns = [(_stem(route.pattern), f"{_bare(route.pattern)}()") for _, route in routes]
        self._parts.append((re.compile(_alternatives(patterns, 0)).match, table, None))

    def match(self, path: str) -> Match[Target] | None:
        """The first route that matches, or None; paths past `ROUTED_PATH_LIMIT` match nothing."""
        return self.fixed.get(path) or self.search(path)

    def search(self, path: str) -> Match[Target] | None:
        """As `match`, for a path that is not in `fixed`."""
        if len(path) > ROUTED_PATH_LIMIT:
            return None
        for matcher, table, only in self._parts:
            found = matcher(path)
            if found is None:
                continue
            number, target, spots, named_spots, to_python = only or table[found.lastindex]
            if not named_spots:
                if len(spots) == 1:
                    return target, (found[spots[0]],), {}
                return target, found.group(*spots) if spots else (), {}
            named = {name: found[spot] for name, spot in named_spots}
            if to_python and not _convert(named, to_python):
                return self._match_after(number, path)
            return target, tuple([found[spot] for spot in spots]) if spots else (), named
        return None

    def _match_after(self, number: int, path: str) -> Match[Target] | None:
        """The first that matches behind one whose converter refused: rare, so one by one."""
        for route in self._routes[number + 1 :]:
            match = route.match(path)
            if match is not None:
                return match
        return None


def _alternative(number: int, route: Route[Target], before: int) -> _Alternative[Target]:
    """A route's place in an expression in which `before` groups stand before its own."""
    return (
        number,
        route.target,
        tuple(before + spot for spot in route.positional),
        tuple((name, before + spot) for name, spot in route.named),
        route.to_python,
    )


def _bare(pattern: str) -> str:
    """A pattern that can stand among alternatives: anchored by `match`, its groups unnamed."""
    pattern = _NAMED.sub("(", pattern)
    if "|" in pattern:
        return f"(?:{pattern})"
    return pattern.removeprefix("^")


def _stem(pattern: str) -> str:
    """The plain characters that a pattern begins with."""
    if "|" in pattern:
        return ""
    stem = re.match(r"(?:[\w/-](?![*+?{]))*", pattern.removeprefix("^"), re.ASCII)
    return stem[0] if stem else ""


def _alternatives(patterns: list[tuple[str, str]], depth: int) -> str:
    """Joins (stem, pattern) pairs in order; neighbours share what their stems have in common.

    A path is then compared with a stem once, not once for each route that begins with it.
    """
    joined: list[str] = []
    while patterns:
        stem = patterns[0][0]
        size = 1
        shared = len(stem)
        while size < len(patterns) and len(stem) > depth:
            common = _common(stem[:shared], patterns[size][0])
            if common <= depth:
                break
            shared = common
            size += 1
        run, patterns = patterns[:size], patterns[size:]
        if size == 1:
            joined.append(run[0][1][depth:])
        else:
            joined.append(f"{stem[depth:shared]}(?:{_alternatives(run, shared)})")
    return "|".join(joined)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common from the start."""
    size = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        size += 1
    return size


def _literal(pattern: str) -> str | None:
    """The one path that a pattern matches, if it is that simple."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    inner = pattern[1:-1]
    return _ESCAPED.sub(r"\1", inner) if _LITERAL.fullmatch(inner) else None

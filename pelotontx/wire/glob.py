"""Redis globs: whether a name matches one, and what is meant by the first that does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

_Token: TypeAlias = Callable[[str], object] | None
"""Whether one character matches; None: any number of any characters."""

_T = TypeVar("_T")
_NAMES_LIMIT: Final = 1000
_GLOBS_LIMIT: Final = 1000
_globs: dict[str, list[_Token]] = {}


def glob_match(glob: str, name: str) -> bool:
    r"""Whether a Redis glob (``*``, ``?``, ``[ab]``, ``[^a]``, ``[a-z]``, ``\x``) matches a name.

    Takes at most ``len(glob) * len(name)`` steps, whatever the glob.
    """
    tokens = _globs.get(glob)
    if tokens is None:
        if len(_globs) >= _GLOBS_LIMIT:
            _globs.clear()
        tokens = _globs[glob] = _tokens(glob)
    at = position = 0
    star, resume = -1, 0
    while position < len(name):
        token = tokens[at] if at < len(tokens) else _never
        if token is None:
            star, resume, at = at, position, at + 1
        elif token(name[position]):
            at, position = at + 1, position + 1
        elif star >= 0:  # the last star takes one character more
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(token is None for token in tokens[at:])


def _never(character: str) -> bool:
    return False


def _tokens(glob: str) -> list[_Token]:
    tokens: list[_Token] = []
    parts = re.finditer(r"\\(.)|\[(\^?)((?:\\.|[^\]])*)\]?|(\*+)|(\?)|(.)", glob, re.DOTALL)
    for part in parts:
        escaped, negated, members, stars, question, plain = part.groups()
        if stars:
            tokens.append(None)
        elif question:
            tokens.append(bool)  # any character
        elif members is not None:
            tokens.append(re.compile(_class(bool(negated), members), re.DOTALL).fullmatch)
        else:
            tokens.append((escaped or plain).__eq__)
    return tokens


def _class(negated: bool, members: str) -> str:
    """A bracket expression; an empty one matches nothing, its negation anything."""
    parts = []
    for single in re.finditer(r"(?:\\(.)|(.))(?:-(?:\\(.)|(.)))?", members, re.DOTALL):
        first = single.group(1) or single.group(2)
        last = single.group(3) or single.group(4)
        if last is None:
            parts.append(re.escape(first))
        else:
            low, high = sorted((first, last))
            parts.append(f"{re.escape(low)}-{re.escape(high)}")
    if not parts:
        return "." if negated else "(?!)"
    return f"[{'^' if negated else ''}{''.join(parts)}]"


class GlobTable(Generic[_T]):
    """Values by glob: the first glob that matches a name decides.

    The last names are remembered, a thousand of them: whoever chooses names cannot fill memory.

    Args:
        entries: globs and values, in order.
        otherwise: for names that no glob matches.
    """

    def __init__(self, entries: Sequence[tuple[str, _T]], otherwise: _T) -> None:
        self._entries = tuple(entries)
        self._otherwise = otherwise
        self._found: dict[str, _T] = {}

    def find(self, name: str) -> _T:
        """The value for a name; always the same object for the same name."""
        try:
            return self._found[name]
        except KeyError:
            pass
        matching = (value for glob, value in self._entries if glob_match(glob, name))
        if len(self._found) >= _NAMES_LIMIT:
            self._found.clear()
        found = self._found[name] = next(matching, self._otherwise)
        return found

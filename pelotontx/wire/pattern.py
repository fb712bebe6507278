r"""What stands in a route: a regular expression, with placeholders in it, read and reversed. Pure.

    ^/hello/(\w+)$                  a regular expression, matched from the start of the path
    /hello/(\w+)                    one that begins with a slash: the whole path, as `^...$`
    /user/{name}/post/{number:int}  placeholders; `{name}` is `{name:str}`, one segment

A brace and a letter begin a placeholder, a brace and a digit a quantifier. What a placeholder
matches and becomes is a `Converter`'s. For `wire.routing` and `web.app`.

A pattern that may take exponential time for some paths is refused. One whose loops share their text
(``^/(.*)/(.*)/(.*)x$``) takes a power of the path's length, and is bounded to paths that are over
soon enough, or refused as well (`wire.backtracking`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import factorial
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pelotontx.wire.backtracking import growth, may_begin_with

_PIECE = re.compile(
    r"""(?P<escape>\\.)
    |(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])
    |(?P<placeholder>\{[A-Za-z_][^{}]*\})
    |(?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(?::([A-Za-z_]\w*))?\}", re.ASCII)
#: A placeholder of Flask's and Django's.
_FOREIGN = re.compile(r"(?<!\?P)<(?:\w+:)?\w+>")
_GROUP = re.compile(r"\((?:\?P<(\w+)>)?(?!\?)")
_LEADING_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")

#: What matching may cost, about 20 ms: n ** power / power! steps for n characters.
_STEPS = 2_000_000
#: Of a higher power not even 50 characters would be over in that time.
_POWER = 4

#: What may stand unquoted in a path, RFC 3986, 3.3.
_UNQUOTED = "/~:@!$&'()*+,;="


def _number_text(value: Any) -> str:
    text = f"{value:f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


@dataclass(frozen=True, slots=True)
class Converter:
    """What a placeholder stands for.

    Attributes:
        pattern: the regular expression, without capturing groups.
        to_python: makes the handler's argument of the text; None leaves the text. A `ValueError`
            of it means that the route does not match.
        to_text: the text of a value, for reverse URLs.
    """

    pattern: str
    to_python: Callable[[str], Any] | None = None
    to_text: Callable[[Any], str] = str


CONVERTERS: dict[str, Converter] = {
    "str": Converter("[^/]+"),
    "path": Converter(".+"),
    "int": Converter("[0-9]+", int),
    "float": Converter(r"[0-9]+(?:\.[0-9]+)?", float, _number_text),
    "uuid": Converter("[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}", UUID),
}
"""What every application knows."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What a value fills in a reversed route: `regex` judges its text."""

    name: str | None
    regex: re.Pattern[str]
    to_text: Callable[[Any], str]


class Pattern:
    """A route's pattern, read.

    Args:
        source: as the user wrote it.
        converters: by name.

    Attributes:
        text: the regular expression without placeholders.
        to_python: how captures by name are converted, where they are.
        path_limit: characters of the longest path that is matched, because matching takes more
            than their square; None: any.

    Raises:
        re.error: not a regular expression.
        ValueError: a brace that is no placeholder, an unknown converter, a name used twice, a
            pattern that matches no path, or one that may take for ever.
    """

    __slots__ = ("_bound", "_converters", "path_limit", "regex", "source", "text", "to_python")

    def __init__(self, source: str, converters: Mapping[str, Converter] = CONVERTERS) -> None:
        if foreign := _FOREIGN.search(source):
            raise ValueError(f"{foreign[0]} in {source}: placeholders are {{name}} or {{name:int}}")
        self.source = source
        self._converters: dict[str, Converter] = {}
        text = "".join(
            self._expanded(text, converters) if kind == "placeholder" else text
            for kind, text in _pieces(source)
        )
        if not text or not may_begin_with(text, "/"):
            raise ValueError(f"{source!r} matches no path: paths begin with a slash")
        if text.startswith("/"):
            text = f"^(?:{text})$" if "|" in text else f"^{text}$"
        self.path_limit = self._limit(text)
        self._bound = f"(?!.{{{self.path_limit + 1}}})" if self.path_limit else ""
        self.text = _prefixed(self._bound, text) if self._bound else text
        self.regex = re.compile(self.text)
        self.to_python = {
            name: converter.to_python
            for name, converter in self._converters.items()
            if converter.to_python is not None
        }

    def _limit(self, text: str) -> int | None:
        power = growth(text)
        if power > _POWER:
            raise ValueError(
                f"{self.source} may take for ever: loops in it can take the same text in many "
                "ways; make them possessive (++, *+) or atomic, (?>...), or part their turns"
            )
        return int((_STEPS * factorial(power)) ** (1 / power)) if power > 2 else None

    def _expanded(self, piece: str, converters: Mapping[str, Converter]) -> str:
        found = _PLACEHOLDER.fullmatch(piece)
        if found is None:
            raise ValueError(f"{piece} in {self.source} is not {{name}} or {{name:converter}}")
        name, kind = found[1], found[2] or "str"
        converter = converters.get(kind)
        if converter is None:
            known = ", ".join(sorted(converters))
            raise ValueError(f"{piece} in {self.source}: there is no converter {kind} ({known})")
        if name in self._converters:
            raise ValueError(f"{{{name}}} stands twice in {self.source}")
        self._converters[name] = converter
        return f"(?P<{name}>{converter.pattern})"

    def under(self, prefix: str) -> str:
        """The regular expression of the same route below `prefix`, which is plain text."""
        if not prefix:
            return self.text
        text = self.text.replace(self._bound, "", 1)
        return _prefixed(f"^{re.escape(prefix)}{self._bound}", text)

    def path_for(self, values: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """The quoted path that the route matches with these values.

        Raises:
            ValueError: a value is missing, unknown or does not fit, or the pattern is more than
                text, placeholders and groups.
        """
        left = list(values)
        unused = dict(named)
        parts: list[str] = []
        for part in self._parts():
            if isinstance(part, str):
                parts.append(part)
            elif part.name is not None:
                if part.name not in unused:
                    raise ValueError(f"{self.source} needs a value for {part.name}")
                parts.append(self._filled(part, unused.pop(part.name)))
            elif not left:
                raise ValueError(f"{self.source} needs a value for each of its groups")
            else:
                parts.append(self._filled(part, left.pop(0)))
        if left or unused:
            extra = ", ".join([*unused, *map(repr, left)])
            raise ValueError(f"{self.source} has no place for {extra}")
        path = "".join(parts)
        if self.regex.match(path) is None:
            raise ValueError(f"{self.source} does not match {path}, made of these values")
        quoted = quote(path, safe=_UNQUOTED)
        # Two slashes at the start would be another host.
        return f"/%2F{quoted[2:]}" if quoted.startswith("//") else quoted

    def _filled(self, gap: Gap, value: Any) -> str:
        try:
            text = gap.to_text(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{value!r} does not fit {self.source}: {error}") from None
        # Browsers and proxies take these segments away, however they are quoted.
        if gap.regex.fullmatch(text) is None or not {".", ".."}.isdisjoint(text.split("/")):
            raise ValueError(f"{text!r} does not fit {gap.name or 'a group'} of {self.source}")
        return text

    def _parts(self) -> Iterator[str | Gap]:
        """Plain text and gaps, in order; raises `ValueError` for anything else."""
        pieces = list(_pieces(self.source))
        position = 0
        while position < len(pieces):
            kind, piece = pieces[position]
            position += 1
            following = pieces[position][1] if position < len(pieces) else ""
            if following == "?" and kind in ("plain", "escape") and piece not in "()":
                position += 1  # may be left out, and is
            elif kind == "placeholder":
                name = _PLACEHOLDER.sub(r"\1", piece)
                converter = self._converters[name]
                yield Gap(name, re.compile(converter.pattern), converter.to_text)
            elif piece == "(":
                end = _group_end(pieces, position)
                yield self._group("".join(text for _, text in pieces[position - 1 : end]))
                position = end
            elif kind == "escape" and not piece[1].isalnum():
                yield piece[1]
            elif kind == "plain" and piece not in "^$*+?|{}[])":
                yield piece
            elif not (piece == "^" and position == 1) and not (piece == "$" and not following):
                raise ValueError(f"{self.source} cannot be reversed: {piece} may be many things")

    def _group(self, text: str) -> Gap:
        found = _GROUP.match(text)
        inner = text[found.end() : -1] if found else ""
        if found is None or re.compile(inner).groups or _PLACEHOLDER.search(text):
            raise ValueError(f"{self.source} cannot be reversed: {text} may be many things")
        return Gap(found[1], re.compile(inner), str)


def _pieces(pattern: str) -> Iterator[tuple[str, str]]:
    for found in _PIECE.finditer(pattern):
        yield str(found.lastgroup), found[0]


def _prefixed(prefix: str, text: str) -> str:
    flags = _LEADING_FLAGS.match(text)
    start = flags[0] if flags else ""
    rest = "".join(_without_anchors(text[len(start) :]))
    return f"{start}{prefix}(?:{rest})" if "|" in rest else f"{start}{prefix}{rest}"


def _without_anchors(text: str) -> Iterator[str]:
    """The pieces without `^` where an alternative begins: a prefix comes to stand before it."""
    before = "|"
    for kind, piece in _pieces(text):
        if not (kind == "plain" and piece == "^" and before in ("|", "(", "(?:")):
            yield piece
        before = before + piece if before in ("(", "(?") else piece


def _group_end(pieces: list[tuple[str, str]], position: int) -> int:
    depth = 1
    while depth:
        kind, piece = pieces[position]
        depth += (kind == "plain") * ((piece == "(") - (piece == ")"))
        position += 1
    return position

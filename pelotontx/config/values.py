"""The kinds of values that a configuration key may have, and how each is read.

A kind knows its range, reads what TOML gives (`Kind.read`) or what the environment and the command
line give (`Kind.from_text`, then `Kind.read`), and says in words what it allows. What it refuses it
refuses with `Unusable`, which holds no secret and no line break. Pure: no files, no environment.
"""

from __future__ import annotations

import json
import re
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

_LONGEST_SHOWN = 80  # characters of a refused value in an error: the line must stay readable

# The digits are bounded so that no number leaves the range in which Decimal is exact.
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h)?", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(B|[kKMG]B|[KMG]iB)?", re.ASCII)
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)

# Everything before the last "@" may hold a password, also in a URL that is not well formed.
_USERINFO = re.compile(r"^((?:rediss?(?:\+\w+)?|unix):?/{1,2})?.*@", re.DOTALL)
# "redis://:secret", the host forgotten: what stands where the port should is no number.
_NO_PORT = re.compile(r"(//[^/?#:\[]*:)(?!\d+(?:[/?#]|$)).*", re.DOTALL)
_HOSTS = re.compile(
    r"rediss?\+\w+:/(?:[/,](?:[\w.-]+|\[[\da-f:.]+\])(?::\d+)?)+(?:[/?].*)?", re.ASCII
)
_QUERY_SECRET = re.compile(r"((?:pass\w*|auth|token|secret)=)[^&]*", re.IGNORECASE)


class Unusable(ValueError):
    """A value that a key does not take.

    Attributes:
        shown: the value as it may be printed: one line, without secrets.
        allowed: what would do, to be read after "must be".
    """

    def __init__(self, shown: str, allowed: str) -> None:
        super().__init__(f"{shown}: must be {allowed}")
        self.shown = shown
        self.allowed = allowed


def parse_duration(value: object) -> float:
    """The seconds in `"25s"`, `"500ms"`, `"2m"`, `"1.5h"`, or in a plain number of seconds.

    Raises:
        ValueError: it is none of these, or negative, infinite or absurdly long.
    """
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(Decimal(match[1]) * _SECONDS[match[2] or "s"])
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    raise ValueError("not a duration")


def parse_size(value: object) -> int:
    """The bytes in `"64KiB"`, `"1MiB"`, `"10MB"` (powers of 1000), `"8190B"`, or in an integer.

    Raises:
        ValueError: it is none of these, negative, or no whole number of bytes.
    """
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        size = Decimal(match[1]) * _BYTES[match[2] or "B"]
        if size == size.to_integral_value():
            return int(size)
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15:
        return value
    raise ValueError("not a size")


def shown(value: object) -> str:
    """`value` as an error prints it: as TOML has it where that is short, always one line."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(shown(item) for item in value)}]"
    elif isinstance(value, dict):
        return "a table"
    elif isinstance(value, int) and value.bit_length() > 256:
        return "a very long number"  # str() refuses the longest
    elif isinstance(value, str | bool):
        text = json.dumps(value)
    else:
        text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def without_password(url: str) -> str:
    """`url`, well formed or not, with all that may be a password replaced by `***`."""
    url = _QUERY_SECRET.sub(r"\1***", url)
    if "@" in url:
        return _USERINFO.sub(r"\1***@", url, count=1)
    if _HOSTS.fullmatch(url):
        return url
    return _NO_PORT.sub(r"\1***", url, count=1)


class Kind(ABC):
    """How the values of one key are read.

    Attributes:
        unit: what the dataclass's field has after the key's name: `_s`, `_bytes` or nothing.
        secret: values may hold a password and must never be printed as they are.
    """

    __slots__ = ()
    unit: ClassVar[str] = ""
    secret: ClassVar[bool] = False

    @property
    @abstractmethod
    def allowed(self) -> str:
        """What is allowed, to be read after "must be"."""

    @property
    def sort(self) -> str:
        """The type and range, for the head of a key in the default configuration."""
        return self.allowed

    @abstractmethod
    def read(self, value: object) -> object:
        """The dataclass's value for what TOML gives; raises `Unusable`."""

    def from_text(self, text: str) -> object:
        """What TOML would give for `text`; what cannot be told comes back for `read` to refuse."""
        return text

    def _unusable(self, value: object) -> Unusable:
        return Unusable(shown(value), self.allowed)


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """Seconds as a float, between two durations that are written as in TOML."""

    least: str
    most: str
    unit: ClassVar[str] = "_s"

    @property
    def sort(self) -> str:
        return f"duration, {self.least} to {self.most}"

    @property
    def allowed(self) -> str:
        return f'a duration from {self.least} to {self.most}, such as "25s", "500ms" or "2m"'

    def read(self, value: object) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise self._unusable(value) from None
        if not parse_duration(self.least) <= seconds <= parse_duration(self.most):
            raise self._unusable(value)
        return seconds


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Bytes as an int, between two sizes that are written as in TOML."""

    least: str
    most: str
    unit: ClassVar[str] = "_bytes"

    @property
    def sort(self) -> str:
        return f"size, {self.least} to {self.most}"

    @property
    def allowed(self) -> str:
        return f'a size from {self.least} to {self.most}, such as "8190B", "64KiB" or "1MiB"'

    def read(self, value: object) -> int:
        try:
            size = parse_size(value)
        except ValueError:
            raise self._unusable(value) from None
        if not parse_size(self.least) <= size <= parse_size(self.most):
            raise self._unusable(value)
        return size


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number in a range."""

    least: int
    most: int

    @property
    def sort(self) -> str:
        return f"integer, {self.least} to {self.most}"

    @property
    def allowed(self) -> str:
        return f"an integer from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._unusable(value)
        if not self.least <= value <= self.most:
            raise self._unusable(value)
        return value

    def from_text(self, text: str) -> object:
        return int(text) if _INTEGER.fullmatch(text) else text


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """A boolean; as text also yes, no, on, off, 1 and 0."""

    @property
    def sort(self) -> str:
        return "boolean"

    @property
    def allowed(self) -> str:
        return "true or false"

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise self._unusable(value)

    def from_text(self, text: str) -> object:
        return _FLAGS.get(text.lower(), text)


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.words)}"

    def read(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise self._unusable(value)


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string of which `accept` says whether it will do; `wanted` says in words what will."""

    name: str
    wanted: str
    accept: Callable[[str], bool]

    @property
    def sort(self) -> str:
        return self.name

    @property
    def allowed(self) -> str:
        return self.wanted

    def read(self, value: object) -> str:
        if isinstance(value, str) and self.accept(value):
            return value
        raise self._unusable(value)


@dataclass(frozen=True, slots=True)
class SecretText(Text):
    """A URL that may hold a password: errors show it without."""

    secret: ClassVar[bool] = True

    def _unusable(self, value: object) -> Unusable:
        text = without_password(value) if isinstance(value, str) else None
        sort = f"a value of type {type(value).__name__}"
        return Unusable(sort if text is None else shown(text), self.allowed)


@dataclass(frozen=True, slots=True)
class HiddenText(SecretText):
    """A secret as a whole: errors show nothing of it."""

    def _unusable(self, value: object) -> Unusable:
        return Unusable(_hidden(value), self.allowed)


def _hidden(value: object) -> str:
    """What may be told of a secret."""
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    return f"a value of type {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class TextList(Kind):
    """Strings of one kind, kept as a tuple; as text a TOML array, or separated by commas."""

    item: Text
    least: int = 0

    @property
    def sort(self) -> str:
        return f"list of {self.item.name}s"

    @property
    def allowed(self) -> str:
        some = "a list" if self.least == 0 else f"a list of at least {self.least}"
        return f"{some}, each {self.item.wanted}"

    def read(self, value: object) -> tuple[str, ...]:
        if isinstance(value, list | tuple) and len(value) >= self.least:
            return tuple(self.item.read(item) for item in value)
        raise self._unusable(value)

    def from_text(self, text: str) -> object:
        text = text.strip()
        if text.startswith("["):
            try:
                return tomllib.loads(f"list = {text}")["list"]
            except ValueError:
                return text
        return [part.strip() for part in text.split(",")] if text else []


@dataclass(frozen=True, slots=True)
class HiddenList(TextList):
    """A `TextList` of `HiddenText`."""

    secret: ClassVar[bool] = True

    def _unusable(self, value: object) -> Unusable:
        return Unusable(_hidden(value), self.allowed)


@dataclass(frozen=True, slots=True)
class OneOrMore(TextList):
    """A `TextList` that takes a string by itself too, since there is hardly ever more than one."""

    @property
    def sort(self) -> str:
        return f"{self.item.name} or list of {self.item.name}s"

    @property
    def allowed(self) -> str:
        return f"{self.item.wanted}, or a list of these"

    def read(self, value: object) -> tuple[str, ...]:
        # Without arguments super() does not know a class that has been made anew for its slots.
        return TextList.read(self, [value] if isinstance(value, str) else value)

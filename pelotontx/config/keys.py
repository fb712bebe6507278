"""What a key of the configuration is, and the fields that define one; for `sections`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from pelotontx.config.values import Duration, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the configuration.

    Attributes:
        kind: how its values are read.
        help: what it does, and why a limit is there; sentences.
        default: as written in TOML; for a key without default, an example.
        required: it has no default.
        at_most: the dotted key whose value this one may not pass, or "".
        inherits: the dotted key whose value counts where this one is not given, or "".
        option: the command line option that sets it, or "".
        name: its name in TOML, filled in when the sections are collected.
        attribute: its field's name.
    """

    kind: Kind
    help: str
    default: Any
    required: bool = False
    at_most: str = ""
    inherits: str = ""
    option: str = ""
    name: str = ""
    attribute: str = ""


def key(default: Any, kind: Kind, help: str, *, at_most: str = "", option: str = "") -> Any:
    """A field with a default, as written in TOML."""
    own = Key(kind=kind, help=help, default=default, at_most=at_most, option=option)
    # A secret must not come out of a repr in some log or traceback.
    return field(default=kind.read(default), repr=not kind.secret, metadata={"key": own})


def required(example: str, kind: Kind, help: str) -> Any:
    """A field that must be given."""
    own = Key(kind=kind, help=help, default=example, required=True)
    return field(metadata={"key": own})


def keys(cls: type[Any]) -> dict[str, Key]:
    """The keys of a section's class by their names in TOML."""
    found = {}
    for entry in fields(cls):
        own: Key = entry.metadata["key"]
        name = entry.name.removesuffix(own.kind.unit)
        found[name] = replace(own, name=name, attribute=entry.name)
    return found


def inherited(dotted: str, base: type[Any], help: str, *, at_most: str = "") -> Any:
    """A key of a table for some names only; None: `dotted`, a key of `base`, holds for them."""
    inherited_key = keys(base)[dotted.partition(".")[2]]
    own = replace(inherited_key, help=help, at_most=at_most, inherits=dotted)
    return field(default=None, metadata={"key": own})


def wait(default: str, help: str, *, most: str = "1h", **more: str) -> Any:
    """A deadline: never zero, since every wait ends."""
    return key(default, Duration("1ms", most), help, **more)

"""The user's own code, found by dotted names such as `shop.rpc:callee`."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import TypeVar

from pelotontx.config.values import shown
from pelotontx.errors import ConfigError

_Kind = TypeVar("_Kind")


def load_object(dotted: str, key: str) -> object:
    """The object that `dotted`, `"module:attribute"`, names; imports the module.

    The module is looked for on `sys.path`, to which the caller adds what it wants.

    Args:
        dotted: `package.module:attribute`; the attribute may be dotted too.
        key: what names it, for errors: `web.app`, `callee[0].object`.

    Raises:
        ConfigError: no such module, or no such attribute in it.
        Exception: whatever the module raises while it is imported, unchanged but for a note that
            names `key`: its traceback is what its author needs.
    """
    module_name, separator, attributes = dotted.partition(":")
    if not separator or not module_name or not attributes:
        raise ConfigError(key, f'{shown(dotted)}: must be a dotted name "module:attribute"')
    found: object = _import(module_name, dotted, key)
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            reason = f"{shown(dotted)}: there is no {name} in {_name(found)}"
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(key, reason + hint) from None
    return found


def load_kind(dotted: str, key: str, kind: type[_Kind]) -> _Kind:
    """`load_object` of something that must be a `kind`.

    Raises:
        ConfigError: as there, or an object of another type.
    """
    found = load_object(dotted, key)
    if not isinstance(found, kind):
        reason = f"is a {type(found).__name__}; a pelotontx {kind.__name__} is needed"
        raise ConfigError(key, f"{shown(dotted)}: {reason}")
    return found


def _import(module_name: str, dotted: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only the named module or a package above it: what it imports itself is its own affair.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"{shown(dotted)}: there is no module {error.name}"
            raise ConfigError(key, reason) from None
        error.add_note(f"while {module_name} was imported for {key}")
        raise
    except Exception as error:
        error.add_note(f"while {module_name} was imported for {key}")
        raise


def _name(found: object) -> str:
    return found.__name__ if isinstance(found, ModuleType | type) else type(found).__name__

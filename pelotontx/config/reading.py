"""Loading: a file, the environment and the command line, one over the other, to a `Config`.

Each value is remembered with where it came from, so that also a check over two keys can name the
line that somebody wrote.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NoReturn

from pelotontx.config.keys import Key
from pelotontx.config.sections import SECTIONS, Config, Section
from pelotontx.config.values import Unusable, shown
from pelotontx.errors import ConfigError

_PREFIX = "PELOTON_"
_BARE_KEY = re.compile(r"[\w-]+", re.ASCII)

_SETTABLE: dict[str, Key] = {
    f"{section_name}.{key.name}": key
    for section_name, section in SECTIONS.items()
    if not section.repeated
    for key in section.keys.values()
}
MOUNT_KINDS = ("app", "resource", "wsgi", "asgi", "directory", "package")
"""What a `[[mount]]` can be."""

MOUNT_OPTIONS = {
    "threads": ("wsgi",),
    "queue": ("wsgi",),
    "message_limit": ("asgi",),
    "body_limit": ("resource", "wsgi", "asgi"),
    "max_age": ("directory", "package"),
}
"""Which of them each of its options is for."""

_VARIABLES = {f"{_PREFIX}{dotted.replace('.', '__').upper()}": dotted for dotted in _SETTABLE}


def load(
    path: str | None, *, environ: Mapping[str, str], overrides: Mapping[str, object] | None
) -> Config:
    """The configuration: defaults, under the file, under the environment, under `overrides`.

    Every value is checked, also one that is overridden.

    Args:
        path: a TOML file, or None for the defaults.
        environ: variables such as `PELOTON_BROKER__URL`; those without `PELOTON_` are let alone.
        overrides: values by dotted key, from the command line; None is as if it were absent, a
            string is read as the environment's are.

    Raises:
        ConfigError: the first thing that is wrong; its text is one line and holds no password.
    """
    reading = _Reading()
    if path is not None:
        reading.take_file(path)
    reading.take_environment(environ)
    reading.take_overrides(overrides or {})
    config = reading.without_default_listener(reading.build(path))
    reading.check_order(config)
    reading.check_tables(config)
    reading.check_paths(config)
    reading.check_processes(config)
    reading.check_listeners(config)
    reading.check_mounts(config)
    return config


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as it was given: by whom, how it was written, and what was read."""

    source: str
    raw: object
    value: object


class _Reading:
    """What was given so far, by dotted key; a table of a repeated section is `callee[0]`."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}
        self._counts: dict[str, int] = {}

    def take_file(self, path: str) -> None:
        for name, body in _parse(path).items():
            section = SECTIONS.get(name)
            if section is None:
                sort = "section" if _is_table(body) else "key"
                raise ConfigError(f"{path}: {_quoted(name)}", f"unknown {sort}{_hint('', name)}")
            if section.repeated:
                self._take_tables(path, name, section, body)
            elif isinstance(body, dict):
                self._take_table(path, name, section, body)
            else:
                reason = f"{shown(body)}: must be a table: [{name}]"
                raise ConfigError(f"{path}: {name}", reason)

    def _take_tables(self, path: str, name: str, section: Section, bodies: object) -> None:
        if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
            reason = f"{shown(bodies)}: must be an array of tables: [[{name}]]"
            raise ConfigError(f"{path}: {name}", reason)
        self._counts[name] = len(bodies)
        for index, body in enumerate(bodies):
            self._take_table(path, f"{name}[{index}]", section, body)

    def _take_table(self, path: str, where: str, section: Section, body: dict[str, Any]) -> None:
        for name, raw in body.items():
            key = section.keys.get(name)
            if key is None:
                hint = _hint(where.partition("[")[0], name)
                raise ConfigError(f"{path}: {where}.{_quoted(name)}", f"unknown key{hint}")
            self._take(path, f"{where}.{name}", key, raw)

    def take_environment(self, environ: Mapping[str, str]) -> None:
        mistyped = {variable.replace("__", "_"): variable for variable in _VARIABLES}
        for variable in sorted(environ):
            if variable in _VARIABLES:
                dotted = _VARIABLES[variable]
                key = _SETTABLE[dotted]
                self._take(variable, dotted, key, key.kind.from_text(environ[variable]))
            elif variable in mistyped:
                # Else a setting that somebody relies on would be ignored without a word.
                reason = f"one underscore too few; did you mean {mistyped[variable]}?"
                raise ConfigError(variable, reason)
            elif variable.startswith(_PREFIX) and "__" in variable:
                raise _unknown_variable(variable)

    def take_overrides(self, overrides: Mapping[str, object]) -> None:
        for dotted, raw in overrides.items():
            if raw is None:
                continue
            key = _SETTABLE.get(dotted)
            if key is None:
                section, _, name = dotted.rpartition(".")
                raise ConfigError(f"command line: {dotted}", f"unknown key{_hint(section, name)}")
            given = key.kind.from_text(raw) if isinstance(raw, str) else raw
            self._take(key.option or "command line", dotted, key, given)

    def _take(self, source: str, dotted: str, key: Key, raw: object) -> None:
        try:
            value = key.kind.read(raw)
        except Unusable as error:
            raise ConfigError(f"{source}: {dotted}", str(error)) from None
        self._given[dotted] = _Given(source, raw, value)

    def build(self, path: str | None) -> Config:
        """The dataclasses; `path` is for the error of a table that lacks a required key."""
        sections: dict[str, object] = {}
        for name, section in SECTIONS.items():
            if section.repeated:
                tables = range(self._counts.get(name, 0))
                sections[name] = tuple(self._table(path, f"{name}[{n}]", section) for n in tables)
            else:
                sections[name] = self._table(path, name, section)
        return Config(**sections)  # type: ignore[arg-type]

    def _table(self, path: str | None, where: str, section: Section) -> Any:
        values = {}
        for key in section.keys.values():
            dotted = f"{where}.{key.name}"
            if dotted in self._given:
                values[key.attribute] = self._given[dotted].value
            elif key.required:
                reason = f"missing: must be {key.kind.allowed}"
                raise ConfigError(f"{path}: {dotted}", reason)
        return section.cls(**values)

    def without_default_listener(self, config: Config) -> Config:
        """`[[listener]]` takes the place of what `server.listen` is when nobody has written it."""
        if not config.listener or "server.listen" in self._given:
            return config
        return replace(config, server=replace(config.server, listen=()))

    def check_order(self, config: Config) -> None:
        """No key may pass the one that its definition names as `at_most`."""
        for dotted, key in _SETTABLE.items():
            if not key.at_most or _value(config, dotted) <= _value(config, key.at_most):
                continue
            if dotted in self._given:
                self._refuse(
                    dotted, f"must be at most {key.at_most} ({self._written(key.at_most)})"
                )
            self._refuse(key.at_most, f"must be at least {dotted} ({self._written(dotted)})")

    def check_tables(self, config: Config) -> None:
        """The same for the keys of repeated sections."""
        for name, section in SECTIONS.items():
            bounded = [key for key in section.keys.values() if section.repeated and key.at_most]
            for index, table in enumerate(getattr(config, name) if bounded else ()):
                for key in bounded:
                    value = getattr(table, key.attribute)
                    if value is not None and value > _value(config, key.at_most):
                        most = f"{key.at_most} ({self._written(key.at_most)})"
                        self._refuse(f"{name}[{index}].{key.name}", f"must be at most {most}")

    def check_paths(self, config: Config) -> None:
        """Two things cannot be served at one path."""
        dotted_paths = [dotted for dotted in _SETTABLE if dotted.startswith("paths.")]
        for one, other in combinations(dotted_paths, 2):
            if _value(config, one) and _value(config, one) == _value(config, other):
                culprit, holder = (other, one) if other in self._given else (one, other)
                self._refuse(culprit, f"must differ from {holder}")

    def check_processes(self, config: Config) -> None:
        """A broker inside the server's process is out of reach for other processes."""
        for index, callee in enumerate(config.callee):
            if callee.processes and config.broker.url == "memory:":
                reason = "must be 0 while broker.url is memory:, which other processes cannot reach"
                self._refuse(f"callee[{index}].processes", reason)

    def check_listeners(self, config: Config) -> None:
        """What a listener does must go together."""
        for index, listener in enumerate(config.listener):
            name = f"listener[{index}]"
            if listener.certificate and listener.endpoint.startswith("ssl:"):
                self._refuse(f"{name}.certificate", "the endpoint has one already: write tcp:")
            for key in ("private_key", "client_ca"):
                if getattr(listener, key) and not listener.certificate:
                    self._refuse(f"{name}.{key}", "needs a certificate beside it")
            if listener.private_key and len(listener.private_key) != len(listener.certificate):
                count = len(listener.certificate)
                self._refuse(f"{name}.private_key", f"must be one for each certificate ({count})")
            if listener.redirect and listener.certificate:
                self._refuse(f"{name}.redirect", "this listener speaks https itself")
            if listener.proxy_protocol and not (
                config.server.proxies or listener.endpoint.startswith(("unix:", "systemd"))
            ):
                reason = "server.proxies must say who may send such a header"
                self._refuse(f"{name}.proxy_protocol", reason)

    def check_mounts(self, config: Config) -> None:
        """Each mount is one thing, at a path of its own, with options that mean something."""
        # A demo page is only what stands at the root while nothing else does.
        paths = {
            _value(config, dotted): dotted
            for dotted in _SETTABLE
            if dotted.startswith("paths.") and dotted != "paths.demo" and _value(config, dotted)
        }
        for index, mount in enumerate(config.mount):
            name = f"mount[{index}]"
            kinds = [kind for kind in MOUNT_KINDS if getattr(mount, kind)]
            if not kinds:
                source = self._given[f"{name}.path"].source
                raise ConfigError(
                    f"{source}: {name}", f"must have exactly one of {', '.join(MOUNT_KINDS)}"
                )
            if len(kinds) > 1:
                self._refuse(f"{name}.{kinds[1]}", f"must not stand beside {name}.{kinds[0]}")
            for option, users in MOUNT_OPTIONS.items():
                if kinds[0] not in users and self._differs("mount", index, option):
                    self._refuse(f"{name}.{option}", f"is for {' and '.join(users)} only")
            holder = paths.setdefault(mount.path.rstrip("/"), f"{name}.path")
            if holder != f"{name}.path":
                self._refuse(f"{name}.path", f"must differ from {holder}")

    def _differs(self, section: str, index: int, name: str) -> bool:
        """Whether a key of a table was given, as something else than what it is anyway."""
        key = SECTIONS[section].keys[name]
        given = self._given.get(f"{section}[{index}].{name}")
        return given is not None and given.value != key.kind.read(key.default)

    def _refuse(self, dotted: str, reason: str) -> NoReturn:
        given = self._given[dotted]
        raise ConfigError(f"{given.source}: {dotted}", f"{shown(given.raw)}: {reason}")

    def _written(self, dotted: str) -> str:
        given = self._given.get(dotted)
        return str(_SETTABLE[dotted].default if given is None else given.raw)


def _parse(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, f"line {line}: not UTF-8") from None
    except RecursionError:
        raise ConfigError(path, "not TOML: nested too deeply") from None
    except ValueError as error:  # a TOMLDecodeError says "... (at line 3, column 5)" itself
        raise ConfigError(path, f"not TOML: {error}") from None


def _value(config: Config, dotted: str) -> Any:
    section = dotted.partition(".")[0]
    return getattr(getattr(config, section), _SETTABLE[dotted].attribute)


def _is_table(body: object) -> bool:
    return isinstance(body, dict) or (
        isinstance(body, list) and bool(body) and all(isinstance(item, dict) for item in body)
    )


def _quoted(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _unknown_variable(variable: str) -> ConfigError:
    section, _, name = variable.removeprefix(_PREFIX).lower().partition("__")
    if section in SECTIONS and SECTIONS[section].repeated:
        return ConfigError(variable, f"[[{section}]] can be set in the file only")
    near = _nearest(section, name)
    if near and near[0] in _SETTABLE:
        hint = f"; did you mean {_PREFIX}{near[0].replace('.', '__').upper()}?"
    else:
        hint = _hint(section, name)
    return ConfigError(f"{variable}: {section}.{name}", f"unknown key{hint}")


def _hint(section: str, name: str) -> str:
    """The end of an error about an unknown key (`section` empty: unknown at the top level)."""
    near = _nearest(section, name)
    if near:
        return f"; did you mean {near[0].removeprefix(f'{section}.') if section else near[0]}?"
    known = SECTIONS[section].keys if section in SECTIONS else SECTIONS
    return f"; known here: {', '.join(known)}"


def _nearest(section: str, name: str) -> list[str]:
    """The known dotted key or section that is most like what was written; or nothing."""
    name = name.lower()
    elsewhere = {dotted.partition(".")[2]: dotted for dotted in _SETTABLE}
    if name in elsewhere:
        return [elsewhere[name]]  # the right key in the wrong place
    if section in SECTIONS:
        near = difflib.get_close_matches(name, SECTIONS[section].keys, 1)
        if near:
            return [f"{section}.{near[0]}"]
    elif not section and (sections := difflib.get_close_matches(name, SECTIONS, 1)):
        return sections
    elif sections := difflib.get_close_matches(section, SECTIONS, 1):
        return _nearest(sections[0], name)
    return [elsewhere[match] for match in difflib.get_close_matches(name, elsewhere, 1, 0.8)]

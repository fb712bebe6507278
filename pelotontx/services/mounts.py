"""`[[mount]]`: applications of other kinds, and files, under the paths of the configuration.

Also starts and stops those that the user's own `App` has mounted.
"""

from __future__ import annotations

import os
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from pelotontx.config import Config, MountConfig, load_kind, load_object
from pelotontx.config.reading import MOUNT_KINDS
from pelotontx.errors import ConfigError
from pelotontx.web import App
from pelotontx.web.files import Files
from pelotontx.web.mount import ASGI, WSGI, Host, Mounted, TwistedWeb


class Mounts:
    """What is mounted.

    Args:
        config: its ``[[mount]]`` tables.
        host: what the server offers to the applications.

    Raises:
        ConfigError: an object that a dotted name stands for is missing or of another kind.
    """

    _log = Logger()

    def __init__(self, config: Config, host: Host) -> None:
        self._host = host
        self._ready: list[Mounted] = []
        self._targets: list[tuple[str, Any]] = []
        for index, table in enumerate(config.mount):
            kind = next(kind for kind in MOUNT_KINDS if getattr(table, kind))
            target = _target(f"mount[{index}].{kind}", kind, table)
            self._targets.append((table.path.rstrip("/"), target))
            if isinstance(target, Mounted):
                self._prepare(target, f"mount[{index}].{kind}")

    @property
    def has_root(self) -> bool:
        """Whether one is at ``/``, so that nothing behind it would be seen."""
        return any(not path for path, _ in self._targets)

    def add_to(self, app: App, last: App | None) -> None:
        """Mounts all in `app`: those with a path, then `last`, then the one at ``/``."""
        for path, target in self._targets:
            if path:
                app.mount(path, target)
        if last is not None:
            app.mount("", last)
        for path, target in self._targets:
            if not path:
                app.mount(path, target)
        for prefix, target in app.mounted():
            if isinstance(target, Mounted) and target not in self._ready:
                self._prepare(target, f"the mount at {prefix or '/'}")

    def _prepare(self, target: Mounted, name: str) -> None:
        target.prepare(self._host, name)
        self._ready.append(target)

    async def start(self) -> None:
        """Starts them one after the other.

        Raises:
            ConfigError: one refuses to.
        """
        for target in self._ready:
            await maybeDeferred(target.start)

    def drain(self, timeout_s: float) -> Deferred[Any]:
        """Ends WebSockets that they have open."""
        return gatherResults([maybeDeferred(target.drain, timeout_s) for target in self._ready])

    async def stop(self) -> None:
        """Stops them, the last that was started first."""
        while self._ready:
            try:
                await maybeDeferred(self._ready.pop().stop)
            except Exception:  # foreign code; the others must stop all the same
                self._log.failure("A mounted application did not stop cleanly")


def _target(key: str, kind: str, table: MountConfig) -> Any:
    """The object of one table."""
    named = getattr(table, kind)
    if kind == "app":
        return load_kind(named, key, App)
    if kind == "directory":
        if not os.path.isdir(named):
            raise ConfigError(key, f'"{named}": there is no such folder')
        return Files(named, max_age_s=round(table.max_age_s))
    if kind == "package":
        return _package_files(key, table)
    found = load_object(named, key)
    try:
        return _hosted(kind, found, table)
    except TypeError as error:
        raise ConfigError(key, f'"{named}": {error}') from None


def _hosted(kind: str, found: Any, table: MountConfig) -> Mounted:
    limit_bytes = table.body_limit_bytes
    if kind == "resource":
        return TwistedWeb(found, body_limit_bytes=limit_bytes)
    if kind == "wsgi":
        return WSGI(found, threads=table.threads, queue=table.queue, body_limit_bytes=limit_bytes)
    return ASGI(found, body_limit_bytes=limit_bytes, message_limit_bytes=table.message_limit_bytes)


def _package_files(key: str, table: MountConfig) -> Files:
    package, _, folder = table.package.partition(":")
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ConfigError(key, f'"{table.package}": there is no package {package}')
    if not files(package).joinpath(folder).is_dir():
        raise ConfigError(key, f'"{table.package}": there is no such folder in {package}')
    return Files(folder, package=package, max_age_s=round(table.max_age_s))

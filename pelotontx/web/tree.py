"""What an app consists of: routes, hooks, and other apps and objects below prefixes.

`web.app.App` answers requests by it; import everything from there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

from twisted.logger import Logger

from pelotontx.web.hooks import Hooks
from pelotontx.web.request import Request
from pelotontx.web.routes import EVERY_METHOD, Entry, Leaf, Target, leaves
from pelotontx.wire.pattern import CONVERTERS, Converter, Pattern

Handler = TypeVar("Handler", bound=Callable[..., Any])

#: Segments of plain text; what stands for another one (.. and .) no browser sends.
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[^/{]+)+")


class Mountable(Protocol):
    """What can be mounted: a tree of files, another framework's application."""

    def handle(self, request: Any) -> Any:
        """Answers any request below ``request.root_path``; ``request.stream`` is unread."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What stands below a prefix.

    Attributes:
        prefix: plain text without a slash at its end.
        target: another app, or an object.
        name: for reverse URLs.
        owns: what no route there matches is the mounted app's affair.
    """

    prefix: str
    target: RouteTree | Mountable
    name: str
    owns: bool


#: Hooks of the apps around a place, the outermost first.
Chain = tuple[Hooks, ...]


class Wrap(Protocol):
    """Makes a routing table's target of a handler."""

    def __call__(
        self, handler: Target, chain: Chain, *, stream: bool, body_limit_bytes: int | None
    ) -> Target: ...


class RouteTree:
    """All that was registered with one app."""

    _log = Logger()

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._mounts: list[Mount] = []
        self._parents: list[tuple[RouteTree, str]] = []
        self._hooks = Hooks()
        self._converters = dict(CONVERTERS)

    def _changed(self) -> None:
        """Something was added here or below."""
        for parent, _ in self._parents:
            parent._changed()

    # Routes.

    def route(
        self,
        method: str | Iterable[str],
        pattern: str,
        *extra: Any,
        name: str | None = None,
        stream: bool = False,
        body_limit_bytes: int | None = None,
        **named_extra: Any,
    ) -> Callable[[Handler], Handler]:
        """Decorates a handler for a method, or several, and a pattern.

        Args:
            method: upper case; ``GET`` serves HEAD as well.
            pattern: a regular expression, matched from the start of the decoded path, or the whole
                path if it begins with a slash. Groups become arguments, named groups and
                placeholders such as ``{number:int}`` keyword arguments. Of paths that are longer
                than `wire.routing.ROUTED_PATH_LIMIT` none is matched.
            extra: arguments that the handler gets between the request and the captures.
            name: for `url_for`; the function's own name if None.
            stream: call the handler at once; it reads ``request.stream`` itself. Otherwise it is
                called when the body is there.
            body_limit_bytes: a body past it is a 413; None: the server's ``http.body_limit``.
            named_extra: further keyword arguments of the handler.

        Raises:
            re.error: not a regular expression.
            ValueError: not a method, not a placeholder, no such converter, or a pattern that
                matches no path or may take for ever; see `wire.pattern`.
        """
        methods = (method,) if isinstance(method, str) else tuple(method)
        for each in methods:
            if each not in EVERY_METHOD:
                raise ValueError(f"{each!r} is none of {', '.join(EVERY_METHOD)}")
        parsed = Pattern(pattern, self._converters)
        if parsed.path_limit is not None:
            self._log.warn(
                "{pattern} matches no path of more than {limit} characters: it has many ways to "
                "match one",
                pattern=pattern,
                limit=parsed.path_limit,
            )

        def add(handler: Handler) -> Handler:
            own_name = getattr(handler, "__name__", "") if name is None else name
            self._entries.append(
                Entry(
                    methods=methods,
                    pattern=parsed,
                    handler=handler,
                    extra=extra,
                    named_extra=named_extra,
                    name=own_name,
                    stream=stream,
                    body_limit_bytes=body_limit_bytes,
                )
            )
            self._changed()
            return handler

        return add

    def get(self, pattern: str, *extra: Any, **options: Any) -> Callable[[Handler], Handler]:
        """`route` for GET, and so for HEAD."""
        return self.route("GET", pattern, *extra, **options)

    def post(self, pattern: str, *extra: Any, **options: Any) -> Callable[[Handler], Handler]:
        """`route` for POST."""
        return self.route("POST", pattern, *extra, **options)

    def put(self, pattern: str, *extra: Any, **options: Any) -> Callable[[Handler], Handler]:
        """`route` for PUT."""
        return self.route("PUT", pattern, *extra, **options)

    def patch(self, pattern: str, *extra: Any, **options: Any) -> Callable[[Handler], Handler]:
        """`route` for PATCH."""
        return self.route("PATCH", pattern, *extra, **options)

    def delete(self, pattern: str, *extra: Any, **options: Any) -> Callable[[Handler], Handler]:
        """`route` for DELETE."""
        return self.route("DELETE", pattern, *extra, **options)

    def converter(
        self,
        name: str,
        pattern: str,
        to_python: Callable[[str], Any] | None = None,
        to_text: Callable[[Any], str] = str,
    ) -> None:
        """Adds a kind of placeholder for the routes that follow; see `wire.pattern.Converter`.

        Raises:
            re.error: `pattern` is not a regular expression.
            ValueError: it has a capturing group.
        """
        if re.compile(pattern).groups:
            raise ValueError(f"{pattern}: a converter has no groups but (?:...)")
        self._converters[name] = Converter(pattern, to_python, to_text)

    # What belongs to it.

    def include(self, other: RouteTree) -> None:
        """Adds another app's routes, hooks for them included; later additions to it count too.

        Raises:
            ValueError: `other` includes this app already.
        """
        self._add(Mount("", other, "", owns=False))

    def mount(self, prefix: str, target: RouteTree | Mountable, *, name: str = "") -> None:
        """Serves an app, or any object with ``handle(request)``, below a prefix.

        The bare prefix belongs to it: an app's route for ``/`` answers there. An app is found by
        its routes: what it does not have may be another one's. An object gets every request of
        every method that no route before it is for; there ``request.root_path`` and
        ``request.path_info`` say where, and ``request.stream`` is unread.

        Args:
            prefix: plain text from a slash to no slash, ``/shop``; empty or ``/`` for the root.
            target: what answers.
            name: for `url_for`: ``name.route``, or ``name`` of an object with ``path=``.

        Raises:
            ValueError: not a prefix, or an app in itself.
        """
        prefix = prefix.rstrip("/")
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ValueError(f"{prefix!r} is not a prefix such as /shop")
        self._add(Mount(prefix, target, name, owns=True))

    def _add(self, mount: Mount) -> None:
        other = mount.target
        if isinstance(other, RouteTree):
            if self in other._all():
                raise ValueError("an app cannot include itself")
            other._parents.append((self, mount.prefix))
        self._mounts.append(mount)
        self._changed()

    def _all(self) -> list[RouteTree]:
        apps: list[RouteTree] = [self]
        for mount in self._mounts:
            if isinstance(mount.target, RouteTree):
                apps.extend(mount.target._all())
        return apps

    def mounted(self) -> Iterator[tuple[str, Mountable]]:
        """Every object that is mounted here or in an app in it, behind its whole prefix."""
        for mount in self._mounts:
            if isinstance(mount.target, RouteTree):
                for prefix, target in mount.target.mounted():
                    yield mount.prefix + prefix, target
            else:
                yield mount.prefix, mount.target

    # Hooks.

    def before(self, hook: Handler) -> Handler:
        """Decorates a hook for requests of this app and of those in it, the outer app's first.

        It gets the request, before the body is read, and lets it pass with None; what else it
        returns is the answer. Of requests that no route matches it sees those below the app's own
        prefix, as do the other hooks.
        """
        self._hooks.before.append(hook)
        self._changed()
        return hook

    def before_handler(self, hook: Handler) -> Handler:
        """Decorates a hook like `before`, for when ``request.body`` is there.

        It runs after all those. A route with ``stream=True`` and a mounted object read the body
        themselves: before them it may be incomplete.
        """
        self._hooks.before_handler.append(hook)
        self._changed()
        return hook

    def after(self, hook: Handler) -> Handler:
        """Decorates a hook for answers, error pages included, the inner app's first.

        It gets the request and the response, which it may change; or it returns another. If it
        fails the answer is a 500. Upgrades have no response to give to it.
        """
        self._hooks.after.append(hook)
        self._changed()
        return hook

    def on_error(self, *kinds: type[Exception] | int) -> Callable[[Handler], Handler]:
        """Decorates a handler of exceptions, by type, or by the status that they would give.

        It gets the request and the exception and returns as handlers do; a plain value is sent
        with the error's status. The innermost app's is asked first. What a type names is not
        logged, what only ``on_error(500)`` takes is.
        """

        def add(hook: Handler) -> Handler:
            for kind in kinds:
                self._hooks.on_error[kind] = hook
            self._changed()
            return hook

        return add

    # For the routing tables.

    def _leaves(
        self,
        prefix: str,
        chain: Chain,
        wrap: Wrap,
        places: list[tuple[str, Chain]],
        *,
        owns: bool = True,
    ) -> Iterator[Leaf]:
        """All routes in the order in which they are tried; where apps are goes to `places`."""
        if self._hooks:
            chain = (*chain, self._hooks)
        if owns:
            places.append((prefix, chain))
        for entry in self._entries:
            wrapped = partial(
                wrap,
                chain=chain,
                stream=entry.stream,
                body_limit_bytes=entry.body_limit_bytes,
            )
            yield from leaves(entry, prefix, wrapped)
        for mount in sorted(self._mounts, key=lambda mount: -len(mount.prefix)):
            below = prefix + mount.prefix
            if isinstance(mount.target, RouteTree):
                yield from mount.target._leaves(below, chain, wrap, places, owns=mount.owns)
            else:
                enter = partial(_enter, below, mount.target)
                target = wrap(enter, chain, stream=True, body_limit_bytes=None)
                yield Leaf(None, f"^{re.escape(below)}(?=/|$)", target, {})

    # Reverse URLs.

    def url_for(
        self,
        name: str,
        /,
        *values: Any,
        query: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        **named: Any,
    ) -> str:
        """The path of a route, quoted, with the prefixes of all apps around it.

        Args:
            name: of a route of this app or of one in it; ``mount.route`` for one below a named
                mount, ``mount`` with ``path=`` for what an object serves.
            values: for groups without names, in order.
            query: arguments behind the ``?``; a list of values repeats one.
            named: for placeholders and named groups.

        Raises:
            LookupError: there is no such name.
            ValueError: a value is missing, unknown or does not fit, or the route's pattern is too
                free to be reversed.
        """
        found = list(self._named(name, ""))
        if not found:
            close = difflib.get_close_matches(name, self._names(), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise LookupError(f"there is no route {name!r}{hint}")
        problem: ValueError | None = None
        for prefix, target in found:
            try:
                path = prefix + _path_of(target, values, named)
            except ValueError as error:
                problem = problem or error
                continue
            arguments = urlencode(
                list(query.items()) if isinstance(query, Mapping) else list(query), doseq=True
            )
            return f"{self._place()}{path}" + (f"?{arguments}" if arguments else "")
        assert problem is not None
        raise problem

    def _place(self) -> str:
        """The prefix of this app where it was first mounted, quoted."""
        if not self._parents:
            return ""
        parent, prefix = self._parents[0]
        return parent._place() + quote(prefix)

    def _named(self, name: str, prefix: str) -> Iterator[tuple[str, Pattern | Mountable]]:
        for entry in self._entries:
            if entry.name == name:
                yield prefix, entry.pattern
        first, _, rest = name.partition(".")
        for mount in self._mounts:
            below = prefix + quote(mount.prefix)
            if not isinstance(mount.target, RouteTree):
                if mount.name == name:
                    yield below, mount.target
            elif mount.name:
                if mount.name == first:
                    yield from mount.target._named(rest, below)
            else:
                yield from mount.target._named(name, below)

    def _names(self) -> Iterator[str]:
        yield from (entry.name for entry in self._entries if entry.name)
        for mount in self._mounts:
            if isinstance(mount.target, RouteTree):
                start = f"{mount.name}." if mount.name else ""
                yield from (start + name for name in mount.target._names())
            elif mount.name:
                yield mount.name


def _enter(prefix: str, target: Mountable, request: Request) -> Any:
    request.root_path = prefix
    return target.handle(request)


def _path_of(target: Pattern | Mountable, values: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    if isinstance(target, Pattern):
        return target.path_for(values, named)
    if values or named.keys() != {"path"}:
        raise ValueError("what is mounted here takes path= and nothing else")
    return quote(f"/{str(named['path']).lstrip('/')}")

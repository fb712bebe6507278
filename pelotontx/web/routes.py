"""What was registered with an app, and how it becomes one routing table a method. For `web.app`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from pelotontx.wire.http import METHODS
from pelotontx.wire.pattern import Pattern
from pelotontx.wire.routing import Route, Routes

Target = Callable[..., Any]
Tables = dict[str, Routes[Target]]

EVERY_METHOD = tuple(METHODS.values())


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered route.

    Attributes:
        methods: upper case.
        pattern: what the path must match.
        handler: the user's function.
        extra: further arguments between the request and the captures.
        named_extra: further keyword arguments.
        name: for reverse URLs.
        stream: the handler reads the body itself.
        body_limit_bytes: None: the server's.
    """

    methods: tuple[str, ...]
    pattern: Pattern
    handler: Target
    extra: tuple[Any, ...] = ()
    named_extra: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    stream: bool = False
    body_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A route as the tables have it.

    Attributes:
        methods: which it is for; None: every one, whatever stands behind it (a mount).
        pattern: prefixes included.
        target: what is called.
        to_python: converters of captures.
    """

    methods: tuple[str, ...] | None
    pattern: str
    target: Target
    to_python: dict[str, Callable[[str], Any]]

    def route(self, target: Target | None = None) -> Route[Target]:
        """For a table; with another target if one is given."""
        return Route(self.pattern, target or self.target, self.to_python)


def with_extra(target: Target, extra: tuple[Any, ...], named_extra: dict[str, Any]) -> Target:
    """The same with further arguments, between the request and the captures."""
    if not extra and not named_extra:
        return target

    @wraps(target)
    def call(request: Any, /, *captures: Any, **named: Any) -> Any:
        return target(request, *extra, *captures, **named_extra, **named)

    return call


def leaves(entry: Entry, prefix: str, wrap: Callable[[Target], Target]) -> Iterator[Leaf]:
    """A route below a prefix; what answers at ``prefix/`` answers at the bare prefix as well.

    Args:
        entry: the route.
        prefix: plain text.
        wrap: makes the target of the handler, once its further arguments are bound.
    """
    pattern = entry.pattern
    handler = with_extra(entry.handler, entry.extra, entry.named_extra)
    yield Leaf(entry.methods, pattern.under(prefix), wrap(handler), pattern.to_python)
    if not prefix:
        return
    match = Route(pattern.text, handler, pattern.to_python).match("/")
    if match is not None:
        _, captures, named = match
        bare = with_extra(handler, captures, named)
        yield Leaf(entry.methods, f"^{re.escape(prefix)}$", wrap(bare), {})


def tables(found: list[Leaf], not_here: Target) -> Tables:
    """A table for each method that anything is served for.

    GET serves HEAD, behind what is registered for HEAD itself. A mount takes every method, but not
    on a path that a route before it has for other methods: that leads to `not_here`.
    """
    methods = {method for leaf in found for method in leaf.methods or EVERY_METHOD}
    built = {method: list(_routes(found, method, not_here)) for method in methods}
    if "GET" in built:
        own = [leaf.route() for leaf in found if leaf.methods and "HEAD" in leaf.methods]
        built["HEAD"] = own + built["GET"]
    return {method: Routes(routes) for method, routes in built.items()}


def _routes(found: list[Leaf], method: str, not_here: Target) -> Iterator[Route[Target]]:
    others: list[Leaf] = []
    for leaf in found:
        if leaf.methods is None:
            yield from (other.route(not_here) for other in others)
            others = []
            yield leaf.route()
        elif method in leaf.methods:
            yield leaf.route()
        elif method != "GET" or leaf.methods != ("HEAD",):
            others.append(leaf)

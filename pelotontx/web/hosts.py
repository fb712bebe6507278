"""`KnownHosts`: requests for other hosts than ours are turned away before the app.

The Host field is the client's to choose, and addresses are built of it (`Request.url`): a link in a
mail, a redirect, a page in a cache. A server that answers to its own names alone writes no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pelotontx.net.http import Handle
from pelotontx.web.errors import error_page
from pelotontx.web.request import Request


class KnownHosts:
    """Answers 421 (Misdirected Request; RFC 9110, 15.5.20) to requests for hosts that are not ours.

    Args:
        handle: answers the others.
        names: lower case, without ports: any port will do. ``*.shop.example`` is every name below
            shop.example, and not that itself.
        open_path: is for everybody, with what is below it; empty: none is.
    """

    def __init__(self, handle: Handle, names: Iterable[str], *, open_path: str = "") -> None:
        self._handle = handle
        either = "|".join(map(_pattern, names))
        self._known = re.compile(rf"(?:{either})\.?(?::[0-9]*)?", re.IGNORECASE)
        self._open_path = open_path

    def handle(self, request: Request) -> Any:
        """What `net.http.HTTPFactory` calls instead."""
        if self._known.fullmatch(request.host) or self._is_open(request.path):
            return self._handle(request)
        return error_page(request, 421, "There is no such host here.")

    def _is_open(self, path: str) -> bool:
        start = self._open_path
        return bool(start) and (path == start or path.startswith(f"{start}/"))


def _pattern(name: str) -> str:
    below = name.removeprefix("*.")
    return re.escape(name) if below == name else rf"(?:[a-z0-9_-]+\.)+{re.escape(below)}"

"""Counters as one JSON object, in the form that Go's expvar gives them, for juggler's tools.

    {"cmdline": [WORD, ...], "juggler": {NAME: INT, ...}, "memstats": {NAME: INT, ...}}

Of Go's memory statistics those are shown that juggler's load tester prints; what Python does not
know is 0.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pelotontx.web import App, Request, Response, json

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class DebugVars:
    """Values that are read at each request.

    Args:
        command_line: what is shown of it; without passwords.
    """

    def __init__(self, command_line: Sequence[str]) -> None:
        self._command_line = tuple(command_line)
        self._maps: dict[str, Callable[[], Mapping[str, int]]] = {}

    def add(self, name: str, read: Callable[[], Mapping[str, int]]) -> None:
        """A map of counters under `name`; `read` tells of zeros too."""
        self._maps[name] = read

    def read(self) -> dict[str, Any]:
        """What the page shows, names in order as expvar has them."""
        maps = {name: dict(sorted(read().items())) for name, read in self._maps.items()}
        everything = {"cmdline": self._command_line, "memstats": memory(), **maps}
        return dict(sorted(everything.items()))


def memory() -> dict[str, int]:
    """This process's memory, bytes, under the names of Go's ``runtime.MemStats``.

    Alloc, HeapAlloc and HeapInuse are the resident set and Sys the address space; HeapObjects are
    the blocks of Python's own allocator; NumGC counts collections of all generations.
    """
    try:
        with open("/proc/self/statm", "rb") as statm:
            virtual, resident = (int(pages) * _PAGE_BYTES for pages in statm.read().split()[:2])
    except OSError:  # no /proc
        virtual = resident = 0
    return {
        "Alloc": resident,
        "Frees": 0,
        "HeapAlloc": resident,
        "HeapInuse": resident,
        "HeapObjects": sys.getallocatedblocks(),
        "Mallocs": 0,
        "NumGC": sum(generation["collections"] for generation in gc.get_stats()),
        "PauseTotalNs": 0,
        "StackInuse": 0,
        "Sys": virtual,
        "TotalAlloc": 0,
    }


def routes(path: str, variables: DebugVars) -> App:
    """``GET path``: the object."""
    app = App()

    @app.get(f"^{re.escape(path)}$")
    def show(request: Request) -> Response:
        return json(variables.read(), 200, {"Cache-Control": "no-store"})

    return app

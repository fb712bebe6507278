"""The documents, and the programs that stand in them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language in ``docs/<document>``, in order."""
    text = (DOCS / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def programs(document: str, language: str) -> dict[str, str]:
    """Files by their names: a block that begins with ``# name`` and those behind it are one."""
    found: dict[str, str] = {}
    name = ""
    for block in blocks(document, language):
        named = re.match(r"# ([\w/]+\.\w+)\n", block)
        name = named[1] if named else name
        found[name] = found.get(name, "") + block + "\n\n"
    return found

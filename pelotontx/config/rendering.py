"""The default configuration as a commented TOML file, from the definitions in `sections`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from pelotontx.config.keys import Key
from pelotontx.config.sections import SECTIONS, Config, Section

_HEAD = """\
Every key with its default. A line "#key" or "#[[section]]" is an example; drop the # to use it.
Durations: "500ms", "25s", "2m", "12h", or a number of seconds. Sizes: "8190B", "64KiB", "1MiB", \
"10MB" (powers of 1000), or a number of bytes.
The environment overrides: PELOTON_HTTP__HEAD_TIMEOUT=5s is head_timeout of [http]; lists are \
separated by commas, or TOML arrays.
"""
_WIDTH = 96


def render_default() -> str:
    """A TOML file that holds every key with its help, type and default.

    It loads to exactly the defaults. Sections that may be repeated stand in it as examples.
    """
    lines = [comment for part in _HEAD.splitlines() for comment in _comments(part)]
    for name, section in SECTIONS.items():
        lines += ["", "", *_render_section(name, section)]
    return "\n".join(lines) + "\n"


def as_environment(config: Config) -> dict[str, str]:
    """The variables that give a process of ours this configuration; `[[callee]]` is left out.

    Args:
        config: whose passwords end up among the values.
    """
    variables = {}
    for section_name, section in SECTIONS.items():
        if section.repeated:
            continue
        part = getattr(config, section_name)
        for key in section.keys.values():
            value = getattr(part, key.attribute)
            if value == () and getattr(key.kind, "least", 0):
                continue  # [[listener]] has taken the place of this default
            name = f"PELOTON_{section_name}__{key.name}".upper()
            variables[name] = value if isinstance(value, str) else _toml(value)
    return variables


def _render_section(name: str, section: Section) -> Iterator[str]:
    yield from _comments(section.help)
    yield f"#[[{name}]]" if section.repeated else f"[{name}]"
    for key in section.keys.values():
        yield ""
        yield from _comments(key.help)
        yield from _comments(_type(key))
        yield f"{'#' if section.repeated else ''}{key.name} = {_toml(key.default)}"


def _comments(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _type(key: Key) -> str:
    parts = [key.kind.sort]
    if key.at_most:
        parts.append(f"at most {key.at_most}")
    if key.inherits:
        parts.append(f"default: {key.inherits}")
    else:
        parts.append("required" if key.required else f"default {_toml(key.default)}")
    if key.option:
        parts.append(f"option {key.option}")
    return f"({'; '.join(parts)})"


def _toml(value: object) -> str:
    # For strings without exotic characters, booleans, integers and lists, JSON is TOML.
    return json.dumps(value)

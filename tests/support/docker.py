"""The files of ``docker/`` as tests read them: what an engine would run, to be run without one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from compose_spec import PyOptions

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docker"

_DEFAULTED = re.compile(r"\$\{\w+:-([^}]*)\}")


def parse_compose(text: str) -> dict[str, Any]:
    """The services of a compose file, checked against the compose specification.

    Variables have their defaults; merge keys are applied, `extends` is not.

    Raises:
        ValueError: the first thing that the specification does not know.
    """
    compose = PyOptions(apply_merge=True).from_yaml(_DEFAULTED.sub(r"\1", text))
    compose.validate()
    services: dict[str, Any] = compose.to_dict()["services"]
    return services


def compose_services(name: str) -> dict[str, Any]:
    """The services of ``docker/name``, each with what it extends under its own keys."""
    return {
        service: _extended(body) for service, body in parse_compose(_text(FOLDER / name)).items()
    }


def _extended(body: dict[str, Any]) -> dict[str, Any]:
    extends = body.pop("extends")
    inherited: dict[str, Any] = parse_compose(_text(FOLDER / extends["file"]))[extends["service"]]
    # A key on both sides would need the merge rules of each key; none of ours is.
    assert not inherited.keys() & body.keys()
    return inherited | body


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, in order."""
    lines = _text(FOLDER / "Dockerfile").splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    parts = [line.partition(" ") for line in text.replace("\\\n", " ").splitlines()]
    return [(word, rest.strip()) for word, _, rest in parts]


def runtime_instructions() -> dict[str, str]:
    """The last instruction of each kind of the last stage: what a container is made with."""
    every = instructions()
    last = max(index for index, (word, _) in enumerate(every) if word == "FROM")
    return dict(every[last:])


def healthcheck() -> list[str]:
    """The command of the image's HEALTHCHECK."""
    command = runtime_instructions()["HEALTHCHECK"].partition("CMD ")[2]
    words: list[str] = json.loads(command)
    return words


def copied_paths() -> list[str]:
    """What the image takes from the repository, by its COPY instructions."""
    paths = []
    for word, rest in instructions():
        words = [part for part in shlex.split(rest) if not part.startswith("--")]
        if word == "COPY" and "--from=" not in rest:
            paths += words[:-1]
    return paths


def context_patterns() -> list[str]:
    """The paths that ``.dockerignore`` lets through."""
    lines = _text(REPOSITORY / ".dockerignore").splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")

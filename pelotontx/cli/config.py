"""The configuration commands: `peloton check-config FILE` and `peloton default-config`."""

from __future__ import annotations

import os
import sys

from pelotontx import config
from pelotontx.errors import ConfigError
from pelotontx.services.listeners import load_certificates


def check_config(path: str) -> int:
    """Loads the file as the server would, environment included, and the certificates it names.

    No code of the user's is imported.

    Returns:
        The exit status: 0 and a line on stdout, or 1 and the error, one line, on stderr.
    """
    try:
        loaded = config.load(path, environ=os.environ, overrides=None)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        load_certificates(loaded.listener)
    except ConfigError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    print(f"{path}: ok")
    return 0


def default_config() -> int:
    """Prints every key with its help, type and default; the exit status is 0."""
    print(config.render_default(), end="")
    return 0

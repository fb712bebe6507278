"""`pelotontx.httpd` before it runs: what it is told must make sense."""

from __future__ import annotations

from typing import Any

import pytest

from pelotontx import httpd


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (({"ports": [0], "backlog": 1},), TypeError, "unknown options: backlog"),
        ((("GET", "/"),), ValueError, "a route is"),
        (({}, ("GET", "/{x:y}", print)), ValueError, "no converter y"),
        (({}, ("get", "/", print)), ValueError, "'get' is none of GET"),
    ],
)
def test_what_cannot_be_served_is_told(
    arguments: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        httpd.serve(*arguments)


def test_what_decorates_an_app_decorates_the_one_of_the_module() -> None:
    for name in ("route", "get", "post", "put", "patch", "delete", "converter", "include", "mount"):
        assert getattr(httpd, name) == getattr(httpd.app, name)
    for name in ("before", "before_handler", "after", "on_error", "url_for"):
        assert getattr(httpd, name) == getattr(httpd.app, name)

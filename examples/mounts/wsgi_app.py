"""A WSGI application without a framework: it counts the words that are posted to it."""

from collections.abc import Callable, Iterable
from typing import Any


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    plain = [("Content-Type", "text/plain; charset=utf-8")]
    if environ["REQUEST_METHOD"] == "POST":
        words = sum(len(line.split()) for line in environ["wsgi.input"])  # as the lines arrive
        start_response("200 OK", plain)
        return [f"{words} words\n".encode()]
    start_response("200 OK", plain)
    return [f"POST a text to {environ['SCRIPT_NAME']}{environ['PATH_INFO']}\n".encode()]

"""`HTTPError`, and error pages as people and programs see them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import PelotonError
from pelotontx.net.http import Request, Response
from pelotontx.web.responses import html, json
from pelotontx.wire.http import REASONS

_log = Logger()


class HTTPError(PelotonError):
    """Raised by a handler to answer with an error page.

    Attributes:
        status: the response's status, 400 to 599.
        message: a sentence for the person at the other end.
        headers: further response headers.
    """

    def __init__(
        self, status: int, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {message or REASONS.get(status, 'Error')}")
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def log_failure(request: Request, failure: Failure) -> None:
    """Logs what a handler should not have raised."""
    _log.failure("{method} {path} failed", failure, method=request.method, path=request.path)


def error_page(
    request: Request,
    status: int,
    message: str = "",
    *,
    details: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as a small page, or as ``{"error": {"status", "message"}}`` for JSON clients.

    Args:
        request: whose Accept decides.
        status: of the response.
        message: a sentence for the person at the other end.
        details: a traceback, for development only.
        headers: further response headers.
    """
    reason = REASONS.get(status, "Error")
    accept = request.headers.get("accept")
    if "application/json" in accept and "text/html" not in accept:
        error: dict[str, Any] = {"status": status, "message": message or reason}
        if details:
            error["traceback"] = details
        return json({"error": error}, status, headers)
    page = _PAGE.format(
        status=status,
        reason=escape(reason),
        message=escape(message),
        details=f"<pre>{escape(details)}</pre>" if details else "",
    )
    return html(page, status, headers)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{status} {reason}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2530; --soft: #5c6876; --paper: #f7f8fa;
  --edge: #dde2e8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ecf1; --soft: #9aa7b5; --paper: #14181d; --edge: #2b333c; }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; color: var(--ink);
  background: var(--paper); font: 1rem/1.6 system-ui, sans-serif; }}
main {{ padding: 2rem; max-width: min(60rem, 90vw); box-sizing: border-box; }}
h1 {{ margin: 0 0 .25em; font-size: clamp(1.5rem, 5vw, 2.25rem); line-height: 1.2; }}
h1 span {{ color: var(--soft); font-weight: 400; }}
p {{ margin: 0; color: var(--soft); }}
pre {{ margin: 1.5rem 0 0; padding: 1rem; overflow: auto; border: 1px solid var(--edge);
  border-radius: .5rem; font-size: .85rem; line-height: 1.45; }}
</style>
</head>
<body><main><h1><span>{status}</span> {reason}</h1><p>{message}</p>{details}</main></body>
</html>
"""

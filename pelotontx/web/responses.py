"""What handlers return, in the common cases: text, HTML, JSON, redirects, streams, downloads.

A handler may also return plain values, which `respond` makes responses of:

    Response, Upgrade    as they are
    str                  text/plain, UTF-8 (`html` for HTML)
    bytes                application/octet-stream
    dict, list, Struct   application/json (`json` for other types that msgspec encodes)
    None                 204 No Content
    async iterator       a stream of str or bytes, text/plain (`stream` for another type)
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade

_encode_json = msgspec.json.Encoder().encode

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNQUOTED = re.compile(r"[^\x00-\x1f!-\x7f]+")  # what is no URL's; control characters are refused
_TEXT = "text/plain; charset=utf-8"
_JSON_TYPES = (dict, list, msgspec.Struct)


def text(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A text/plain response in UTF-8."""
    return Response(status, body.encode(), headers or (), _TEXT)


def html(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A text/html response in UTF-8."""
    return Response(status, body.encode(), headers or (), "text/html; charset=utf-8")


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An application/json response.

    Raises:
        TypeError: something that msgspec cannot encode.
    """
    return Response(status, _encode_json(value), headers or (), "application/json")


def redirect(location: str, status: int = 303) -> Response:
    """Sends the browser elsewhere; 303 makes it a GET, 307 and 308 keep the method.

    Args:
        location: a URL; spaces and what is not ASCII are quoted. One that a client chose can lead
            to any site: check it first.
        status: 301, 302, 303, 307 or 308.

    Raises:
        LocalProtocolError: a location with control characters, or a status that redirects nobody.
    """
    if status not in _REDIRECTS:
        raise LocalProtocolError(f"{status} does not redirect")
    return Response(status, b"", {"Location": _UNQUOTED.sub(_quoted, location)})


def _quoted(found: re.Match[str]) -> str:
    return quote(found[0])


def not_found(message: str = "") -> Response:
    """A 404 in plain text; ``raise HTTPError(404)`` gives the app's own page."""
    return text(f"{message or 'Not Found'}\n", 404)


def stream(
    pieces: AsyncIterable[str | bytes],
    content_type: str = _TEXT,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A body that is sent as it is made: the next piece is asked for when there is room for it.

    Text is sent as UTF-8. When the client goes away an async generator is closed where it waits.
    """
    return Response(status, _Encoded(pieces), headers or (), content_type)


class _Encoded:
    """Pieces as bytes."""

    def __init__(self, pieces: AsyncIterable[str | bytes]) -> None:
        self._pieces: AsyncIterator[str | bytes] = aiter(pieces)

    def __aiter__(self) -> _Encoded:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        return piece.encode() if isinstance(piece, str) else piece

    async def aclose(self) -> None:
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


def attachment(
    body: bytes | AsyncIterable[str | bytes],
    filename: str,
    content_type: str = "application/octet-stream",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A download that the browser saves as `filename`; any text, RFC 6266."""
    content = body if isinstance(body, bytes) else _Encoded(body)
    response = Response(200, content, headers or (), content_type)
    response.add_header("Content-Disposition", content_disposition(filename))
    return response


def content_disposition(filename: str) -> str:
    """The value of the field that has a browser save what it gets as `filename`; any text."""
    plain = re.sub(r'[^ -~]|["\\%/]', "_", filename)
    disposition = f'attachment; filename="{plain}"'
    if plain != filename:
        disposition += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return disposition


def respond(result: Any) -> Response | Upgrade:
    """What a handler returned, as a response; see the module's table.

    Raises:
        LocalProtocolError: a type that has no meaning.
    """
    if isinstance(result, Response | Upgrade):
        return result
    if isinstance(result, str):
        return text(result)
    if isinstance(result, bytes):
        return Response(200, result, (), "application/octet-stream")
    if isinstance(result, _JSON_TYPES):
        return json(result)
    if result is None:
        return Response(204)
    if hasattr(result, "__aiter__"):
        return stream(result)
    raise LocalProtocolError(
        f"a handler returned {type(result).__name__}; it may return a Response, str, bytes, dict, "
        "list, Struct, None or an async iterator"
    )

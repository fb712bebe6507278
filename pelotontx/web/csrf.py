"""Against requests that another site has a browser send: tokens, and a look at the sender.

    csrf.protect(app)

    @app.get(r"^/account$")
    async def account(request):
        session = await request.session()
        return html(f'<form method="post">{csrf.field(session)} ... </form>')

A request that may change something (any but GET, HEAD, OPTIONS and TRACE) must come from a page of
ours, as far as the browser says (Sec-Fetch-Site, Origin), and bring the token of its session in the
header X-CSRF-Token or in the field ``csrf_token`` of a form. Otherwise it gets a 403.

Each page shows the token in another mask, so that what is compressed together with it tells nothing
about it (BREACH). A session has one token until it is rotated: it is made of the session's id, so
that requests that run at the same time need not agree on one.

A body that is read as a stream is not touched here: scripts send the header, and a handler that
reads a multipart form is exempt and checks by itself, before it does anything:

    @app.post("/photos", stream=True)
    @csrf.exempt
    async def add_photo(request):
        async with request.read_form() as form:
            await csrf.check(request, form.field(csrf.FIELD))
            ...
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from html import escape
from secrets import token_bytes
from typing import Any, Final, TypeVar

from pelotontx.net.websocket.handshake import origin_allowed
from pelotontx.web.app import App
from pelotontx.web.errors import HTTPError
from pelotontx.web.request import FORM_TYPE, Request
from pelotontx.web.session import Session

Handler = TypeVar("Handler", bound=Callable[..., Any])

HEADER: Final = "X-CSRF-Token"
FIELD: Final = "csrf_token"

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_SECRET_BYTES: Final = 32
#: Of a session: it is kept while there are forms with its token, even if nothing else is in it.
_ISSUED: Final = "_csrf"
#: Of a handler that `protect` leaves alone.
_EXEMPT: Final = "_csrf_exempt"


def token(session: Session) -> str:
    """The session's token, in a new mask: letters, digits, ``-`` and ``_``."""
    if _ISSUED not in session:
        session[_ISSUED] = True
    mask = token_bytes(_SECRET_BYTES)
    return urlsafe_b64encode(mask + _xor(mask, _secret(session))).rstrip(b"=").decode("ascii")


def field(session: Session) -> str:
    """A hidden field for a form, HTML."""
    return f'<input type="hidden" name="{FIELD}" value="{escape(token(session))}">'


async def check(request: Request, sent: str = "", *, origins: Sequence[str] = ()) -> None:
    """Refuses a request that another site may have caused.

    Args:
        request: any; one with a safe method passes.
        sent: the token, if it is neither in the header nor in a form whose body is complete.
        origins: other sites whose pages may send requests, such as ``https://shop.example``.

    Raises:
        HTTPError: 403, it came from elsewhere or its token is wrong; 503, the store of sessions
            does not answer.
    """
    if request.method in _SAFE_METHODS:
        return
    if not _is_from_us(request, tuple(origins)):
        raise HTTPError(403, "This request was sent by a page of another site.")
    sent = sent or request.header(HEADER) or _form_field(request)
    if not sent:
        raise HTTPError(403, f"The token is missing: {FIELD} of the form, or {HEADER}.")
    session = await request.session()
    if session.is_new or not compare_digest(_secret(session), _unmasked(sent)):
        raise HTTPError(403, "This page is too old. Load it again, and then try once more.")


def protect(app: App, *, origins: Sequence[str] = ()) -> None:
    """Has every request to the routes of an app checked, those of apps within it too.

    Args:
        app: which.
        origins: see `check`.
    """

    async def look(request: Request) -> None:
        if not getattr(request.handler, _EXEMPT, False):
            await check(request, origins=origins)

    app.before_handler(look)


def exempt(handler: Handler) -> Handler:
    """Decorates a handler in a protected app that calls `check` by itself, or needs none.

    A form with files has its token in a body that only the handler reads; a program with a key of
    its own is not sent by another site. `protect` looks at nothing of requests for it.
    """
    setattr(handler, _EXEMPT, True)
    return handler


def _is_from_us(request: Request, origins: tuple[str, ...]) -> bool:
    """As far as the browser says; from one that says nothing the token must do."""
    site, origin = request.header("Sec-Fetch-Site"), request.header("Origin")
    if site in ("same-origin", "none"):
        return True
    if site and not origin:
        return False
    return origin_allowed(origin, request.host, origins, is_secure=request.is_secure)


def _form_field(request: Request) -> str:
    if not request.is_complete or request.content_type != FORM_TYPE:
        return ""
    return request.form_field(FIELD)


def _secret(session: Session) -> bytes:
    return sha256(b"pelotontx csrf token\n" + session.id.encode()).digest()


def _unmasked(sent: str) -> bytes:
    """The secret in a token; empty if it is none."""
    try:
        both = urlsafe_b64decode(sent + "=" * (-len(sent) % 4))
    except ValueError:
        return b""
    if len(both) != 2 * _SECRET_BYTES:
        return b""
    return _xor(both[:_SECRET_BYTES], both[_SECRET_BYTES:])


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))

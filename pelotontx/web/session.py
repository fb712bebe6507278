"""Sessions: what a server remembers of a browser from one request to the next.

    @app.post(r"^/login$")
    async def login(request):
        session = await request.session()
        session.rotate()
        session["user"] = name

The browser holds a signed cookie with a random id, the values lie in a store that all servers share
(`pelotontx.broker.interface.SessionStore`). Nothing is stored and no cookie is set until something
is put into a session; it is saved when the handler has answered, unless that was a 5xx. Requests of
one session may run at the same time: each writes only the fields that it has changed, and of two
that change the same one the later wins.

`Sessions` is one server's, `Session` one request's. Who has no configuration makes the first by
hand and gives it to its class of requests as `sessions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from ipaddress import ip_address
from secrets import token_urlsafe
from time import time
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pelotontx.errors import BrokerError, LocalProtocolError
from pelotontx.net.http import Request, Response
from pelotontx.web.errors import HTTPError, error_page
from pelotontx.wire.session import CookieSigner, decode_value, encode_value

#: Every request that asks for its session carries all of it from the store.
_SIZE_LIMIT_BYTES: Final = 64 * 1024
_FIELDS_LIMIT: Final = 100
#: The end of a session is put off when that gains so much, so that reading alone seldom writes.
_SLACK_S: Final = 60.0
_ID_BYTES: Final = 16

_UNAVAILABLE: Final = "Sessions are unavailable at the moment."
_RETRY: Final = {"Retry-After": "2"}


class Store(Protocol):
    """The store as it is seen from here: see `pelotontx.broker.interface.SessionStore`."""

    def load(
        self, session_id: str, *, life_ms: int, slack_ms: int
    ) -> Deferred[dict[str, bytes] | None]:
        """The fields, if there are any."""
        ...

    def save(
        self,
        session_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
        is_new: bool = False,
    ) -> Deferred[bool]:
        """Writes some fields."""
        ...

    def move(
        self,
        session_id: str,
        new_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
    ) -> Deferred[bool]:
        """Saves under another id."""
        ...

    def delete(self, session_id: str) -> Deferred[None]:
        """Ends a session."""
        ...


class Session(MutableMapping[str, Any]):
    """The values of one session by name, as one request sees them.

    Values are JSON's: None, bool, int, float, str, and lists and dicts of these. Changes inside
    lists and dicts are noticed, too. At most 100 values of 64 KiB together, names and encoding
    counted.

    Args:
        fields: encoded, as the store had them; None: a new session.
        origin: the id that they were found under.
        began_s: when it began, in Unix seconds.

    Attributes:
        id: names the session in the store. Whoever knows it can read the session there: not for
            logs.
        began_s: when its lifetime began.
    """

    def __init__(
        self, fields: Mapping[str, bytes] | None = None, *, origin: str = "", began_s: float = 0.0
    ) -> None:
        self.id = origin or _new_id()
        self.began_s = began_s
        self._origin = origin
        self._is_dead = False  # what lies in the store is to be removed
        self._is_closed = False
        self._stored: dict[str, bytes] = {}
        self._values: dict[str, Any] = {}
        for name, field in (fields or {}).items():
            try:
                value = decode_value(field)
                # As it would be written here: others may put spaces into it.
                self._stored[name] = encode_value(value)
            except ValueError:  # another program's affair, left as it is
                continue
            self._values[name] = value
        self._encoded = dict(self._stored)

    @property
    def is_new(self) -> bool:
        """Whether there was none: the browser has no cookie, or its session is over."""
        return not self._origin or self._is_dead

    def rotate(self) -> None:
        """Gives it a new id and a new lifetime: at login, and whenever rights change.

        Whoever had learnt the old id is left with nothing. The values stay. There is another CSRF
        token: forms that were rendered before cannot be sent any more.
        """
        self._check_open()
        self.id = _new_id()

    def destroy(self) -> None:
        """Ends it, on all servers: at logout. What is put into it afterwards begins a new one."""
        self._check_open()
        self._values.clear()
        self._encoded.clear()
        self._is_dead = True
        self.id = _new_id()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets a value.

        Raises:
            TypeError: not one that JSON has.
            ValueError: a number, depth or text that JSON does not have, or no room for it.
            LocalProtocolError: the session has been saved already.
        """
        self._check_open()
        if type(name) is not str:
            raise TypeError(f"a name in a session must be str, not {type(name).__name__}")
        field = _encode(name, value)
        _check_size({**self._encoded, name: field})
        self._encoded[name] = field
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        self._check_open()
        del self._values[name]
        del self._encoded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Session with {len(self)} values>"  # neither its id nor its values are for logs

    def _check_open(self) -> None:
        if self._is_closed:
            raise LocalProtocolError("the session was saved already, when the answer began")

    # What follows is for `Sessions`.

    @property
    def origin(self) -> str:
        """The id that it was found under; empty: none was found."""
        return self._origin

    @property
    def is_dead(self) -> bool:
        """Whether `destroy` was called on what was found under `origin`."""
        return self._is_dead and bool(self._origin)

    @property
    def is_moved(self) -> bool:
        """Whether `rotate` was called on what was found under `origin`."""
        return bool(self._origin) and not self._is_dead and self.id != self._origin

    def close(self) -> None:
        """No more changes."""
        self._is_closed = True

    def changes(self) -> tuple[dict[str, bytes], list[str]]:
        """The fields to set and those to remove.

        Raises:
            TypeError: as `__setitem__`, for what was put into a list or dict since.
            ValueError: likewise.
        """
        stored = {} if self._is_dead else self._stored
        for name, value in self._values.items():
            if type(value) in (list, dict):
                self._encoded[name] = _encode(name, value)
        changed = {n: field for n, field in self._encoded.items() if field != stored.get(n)}
        if changed:
            _check_size(self._encoded)
        return changed, [name for name in stored if name not in self._values]


def _new_id() -> str:
    return token_urlsafe(_ID_BYTES)


def _encode(name: str, value: Any) -> bytes:
    try:
        return encode_value(value)
    except TypeError as error:
        raise TypeError(f"session[{name!r}] {error}") from None
    except ValueError as error:
        raise ValueError(f"session[{name!r}]: {error}") from None


def _check_size(fields: Mapping[str, bytes]) -> None:
    if len(fields) > _FIELDS_LIMIT:
        raise ValueError(f"a session holds at most {_FIELDS_LIMIT} values")
    size_bytes = sum(len(name.encode()) + len(field) for name, field in fields.items())
    if size_bytes > _SIZE_LIMIT_BYTES:
        raise ValueError(
            f"a session holds at most {_SIZE_LIMIT_BYTES} bytes, this would make it {size_bytes}; "
            "keep what is larger elsewhere, and its key here"
        )


class Sessions:
    """The sessions of one server.

    Args:
        store: where they lie; servers that share it, and a secret, share their sessions.
        secrets: sign the cookies: the first the new ones, cookies of the others are still good.
            Without any: a random one, which this process alone knows.
        cookie: its name; a secure one has ``__Host-`` before it.
        secure: whether browsers may send the cookie over TLS only. Chromium makes an exception for
            loopback; False is for development with clients that make none.
        idle_timeout_s: a session that no request asked for in this time is over; up to a minute
            earlier, since its end is not put off each time.
        lifetime_s: a session is over this time after it began or was rotated, used or not.
        wall_clock: Unix seconds.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        store: Store,
        secrets: Sequence[str] = (),
        cookie: str = "session",
        secure: bool = True,
        idle_timeout_s: float = 1800.0,
        lifetime_s: float = 43_200.0,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._cookie = f"__Host-{cookie}" if secure else cookie
        self._signer = CookieSigner(secrets or (token_urlsafe(32),), self._cookie)
        self._secure = secure
        self._idle_timeout_s = idle_timeout_s
        self._lifetime_s = lifetime_s
        self._slack_ms = int(min(_SLACK_S, idle_timeout_s / 10) * 1000)
        self._wall_clock = wall_clock
        self._has_warned = False
        self._warnings: list[str] = []
        if not secrets:
            self._warnings.append(
                "There is no secret for sessions: they end with this process, and no other server "
                "knows them. Set session.secret (PELOTON_SESSION__SECRET)."
            )
        if not secure:
            self._warnings.append(
                "session.secure is off: the cookies of sessions travel unprotected. "
                "For development only."
            )

    async def load(self, cookies: Mapping[str, str]) -> Session:
        """The session that a request's cookies name, or a new one.

        A cookie counts if it was signed here and its session is in the store. A new session has an
        id of its own: nobody can make a browser use an id that he knows.

        Raises:
            HTTPError: 503, the store does not answer.
        """
        read = self._signer.read(cookies.get(self._cookie, ""))
        if read is None:
            return Session()
        session_id, began_s = read
        life_ms = self._life_ms(began_s)
        if life_ms <= 0:
            return Session()
        try:
            fields = await self._store.load(session_id, life_ms=life_ms, slack_ms=self._slack_ms)
        except BrokerError as error:
            self._log.debug("A session cannot be loaded: {error}", error=error)
            raise HTTPError(503, _UNAVAILABLE, _RETRY) from error
        return Session() if fields is None else Session(fields, origin=session_id, began_s=began_s)

    def _life_ms(self, began_s: float) -> int:
        """How long a session may live from now on."""
        left_s = began_s + self._lifetime_s - self._wall_clock()
        return int(min(self._idle_timeout_s, left_s) * 1000)

    async def save(self, session: Session, request: Request, response: Response) -> Response:
        """Writes what a handler has changed, unless it has failed.

        Args:
            session: what `load` gave; it cannot be changed afterwards.
            request: whose answer it is.
            response: the answer, which may be changed.

        Returns:
            What is to be sent: with the cookie, if there is a new one; a 503 if the store does not
            answer.

        Raises:
            TypeError: JSON does not have what was put into a list or dict of the session.
            ValueError: likewise; or the session became too large by that.
        """
        session.close()
        if response.status >= 500:
            return response
        if session.id != session.origin:
            session.began_s = int(self._wall_clock())
        try:
            is_issued = await self._write(session)
        except BrokerError as error:
            self._log.debug("A session cannot be saved: {error}", error=error)
            return error_page(request, 503, _UNAVAILABLE, headers=_RETRY)
        if is_issued:
            self._warn(request)
            self._set_cookie(response, self._signer.sign(session.id, int(session.began_s)))
        elif session.is_dead:
            self._set_cookie(response, "", max_age_s=0)
        if "cache-control" not in response.headers:
            # It is for one browser; with a cookie in it, not even that one may use it again.
            is_cookie_set = is_issued or session.is_dead
            response.add_header("Cache-Control", "no-store" if is_cookie_set else "private")
        return response

    async def _write(self, session: Session) -> bool:
        """Writes what has changed; whether the browser is to be told of a new id."""
        changed, removed = session.changes()
        life_ms = max(1, self._life_ms(session.began_s))
        if session.is_moved:
            return await self._store.move(
                session.origin, session.id, changed, removed, life_ms=life_ms
            )
        if session.is_dead:
            await self._store.delete(session.origin)
        elif session.origin:
            if changed or removed:
                # False: another request has ended it, or given it another id. It stays so.
                await self._store.save(session.origin, changed, removed, life_ms=life_ms)
            return False
        if not changed:
            return False
        return await self._store.save(session.id, changed, life_ms=life_ms, is_new=True)

    def _set_cookie(self, response: Response, value: str, *, max_age_s: int | None = None) -> None:
        # Without a Max-Age it ends with the browser; what counts is the store's expiry anyway.
        response.set_cookie(self._cookie, value, max_age_s=max_age_s, secure=self._secure)

    def _warn(self, request: Request) -> None:
        """Tells what is amiss, each once: when it matters, so not to those without sessions."""
        for warning in self._warnings:
            self._log.warn("{text}", text=warning)
        self._warnings.clear()
        if self._secure and not self._has_warned and _drops_secure_cookies(request):
            self._has_warned = True
            self._log.warn(
                "A session began over plain HTTP: the browser at {client} will drop its cookie. "
                "Use TLS, name the proxy that ends it, or turn session.secure off.",
                client=request.client,
            )


def _drops_secure_cookies(request: Request) -> bool:
    """Whether no browser takes a Secure cookie from here; on loopback Chromium does."""
    if request.is_secure:
        return False
    try:
        return not ip_address(request.client).is_loopback
    except ValueError:  # a UNIX socket: a proxy's
        return False

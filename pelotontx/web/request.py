"""`Request`: what a handler is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from encodings import normalize_encoding
from encodings.aliases import aliases
from functools import partial
from typing import Any, ClassVar, TypeVar, overload
from urllib.parse import parse_qs

import msgspec

from pelotontx.errors import LocalProtocolError
from pelotontx.net import http
from pelotontx.web.errors import HTTPError
from pelotontx.web.forms import Form, FormLimits, Parts, parts, read_form
from pelotontx.web.session import Session, Sessions
from pelotontx.web.uploads import DiskSink, Upload
from pelotontx.wire.cookies import read_cookies
from pelotontx.wire.forwarded import Origin, Proxies

_T = TypeVar("_T")

#: More arguments of a query or a form than any page has; each costs an object.
_ARGUMENTS = 1000

#: What a plain HTML form sends.
FORM_TYPE = "application/x-www-form-urlencoded"


_CHARSET = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^";]*)', re.IGNORECASE)
#: What browsers know. Python has codecs that are no charsets, or take quadratic time; and it keeps
#: every name that it was ever asked for.
_CODECS = (
    frozenset({"ascii", "utf_8", "utf_16", "utf_16_le", "utf_16_be", "latin_1", "mac_roman"})
    | frozenset(f"iso8859_{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16))
    | frozenset(f"cp{page}" for page in (866, 874, 932, 949, *range(1250, 1259)))
    | frozenset({"koi8_r", "koi8_u", "gb2312", "gbk", "gb18030", "big5", "big5hkscs"})
    | frozenset({"shift_jis", "euc_jp", "iso2022_jp", "euc_kr"})
)


class Request(http.Request):
    """A request with what handlers ask for.

    What a proxy says of the client counts only if it comes from `proxies`.

    Attributes:
        proxies: whose word counts; set once for a server, on a subclass.
        sessions: where sessions are; likewise. None: nowhere.
        uploads: where the files of forms go; likewise. None: nowhere.
        form_limits: what such forms may hold; likewise.
        handler: for hooks, and set for these alone: the function of the route, or what stands for
            it and has its attributes.
    """

    __slots__ = (
        "_cookies",
        "_form",
        "_origin",
        "_query",
        "_root_path",
        "_session",
        "_state",
        "handler",
    )

    handler: Callable[..., Any]

    proxies: ClassVar[Proxies] = Proxies()
    sessions: ClassVar[Sessions | None] = None
    uploads: ClassVar[DiskSink | None] = None
    form_limits: ClassVar[FormLimits] = FormLimits()

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's arguments, each with its values in order.

        Raises:
            HTTPError: 400, more than a thousand arguments.
        """
        try:
            return self._query  # type: ignore[has-type,no-any-return]
        except AttributeError:
            self._query = _parsed(self.query_string, "utf-8")
        return self._query

    def argument(self, name: str, default: str = "") -> str:
        """The last value of a query argument."""
        values = self.query.get(name)
        return values[-1] if values else default

    def header(self, name: str, default: str = "") -> str:
        """The first value of a header, in any case of its name."""
        return self.headers.get(name, default)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name; see `wire.cookies.read_cookies`."""
        try:
            return self._cookies  # type: ignore[has-type,no-any-return]
        except AttributeError:
            self._cookies = read_cookies(self.headers.get_all("cookie"))
        return self._cookies

    # The body. A handler finds it complete, unless its route has `stream=True`.

    @property
    def content_type(self) -> str:
        """The body's media type, lower case, without parameters."""
        return self.headers.get("content-type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """The body's charset, lower case; ``utf-8`` if the client names none."""
        found = _CHARSET.search(self.headers.get("content-type"))
        return found[1].strip().lower() if found and found[1] else "utf-8"

    @property
    def _codec(self) -> str:
        """Python's name of the charset."""
        name = normalize_encoding(self.charset)
        codec = aliases.get(name, name)
        if codec not in _CODECS:
            raise HTTPError(415, "The charset is unknown.")
        return codec

    @property
    def _whole(self) -> bytes:
        if not self.is_complete:
            raise LocalProtocolError("the body is not there: hooks and streams come before it")
        return self.body

    @property
    def text(self) -> str:
        """The body as text, in its charset.

        Raises:
            HTTPError: 415 for an unknown charset, 400 for bytes that are not of it.
        """
        codec = self._codec
        try:
            return self._whole.decode(codec)
        except UnicodeDecodeError:
            raise HTTPError(400, f"The body is not {self.charset}.") from None

    @overload
    def json(self) -> Any: ...

    @overload
    def json(self, type: type[_T]) -> _T: ...

    @overload
    def json(self, type: Any) -> Any: ...

    def json(self, type: Any = Any) -> Any:
        """The body, decoded from JSON.

        Args:
            type: what it must be: any type that msgspec can check.

        Raises:
            HTTPError: 400, not JSON, or not of that type.
        """
        try:
            return msgspec.json.decode(self._whole, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPError(400, f"The body is not what was expected: {error}.") from None
        except RecursionError:
            raise HTTPError(400, "The body is nested too deeply.") from None

    @property
    def form(self) -> dict[str, list[str]]:
        """The fields of a form (application/x-www-form-urlencoded), each with its values in order.

        Raises:
            HTTPError: 415 for a body of another type, 400 for more than a thousand fields.
        """
        try:
            return self._form  # type: ignore[has-type,no-any-return]
        except AttributeError:
            pass
        if self._whole and self.content_type != FORM_TYPE:
            raise HTTPError(415, f"A form is expected here, {FORM_TYPE}.")
        self._form = _parsed(self.text, self._codec)
        return self._form

    def form_field(self, name: str, default: str = "") -> str:
        """The last value of a form's field."""
        values = self.form.get(name)
        return values[-1] if values else default

    def read_form(
        self, limits: FormLimits | None = None
    ) -> AbstractAsyncContextManager[Form[Upload]]:
        """Reads a form with files while it arrives, for a route with ``stream=True``.

            async with request.read_form() as form:
                await form.file("photo").store(path)

        See `pelotontx.web.forms.read_form`; a plain HTML form is read as well.

        Raises:
            LocalProtocolError: this server takes no uploads.
        """
        if self.uploads is None:
            raise LocalProtocolError("this server takes no uploads")
        return read_form(self, self.uploads, limits or self.form_limits)

    def parts(self, limits: FormLimits | None = None) -> Parts:
        """The parts of a form with files, one after the other while they arrive.

        For a route with ``stream=True``; see `pelotontx.web.forms.parts`.
        """
        return parts(self, limits or self.form_limits)

    # Where it comes from.

    @property
    def client(self) -> str:
        """The client's IP address as text, or ``unix``; empty without a connection."""
        return self._seen.client if self.proxies else super().client

    @property
    def is_secure(self) -> bool:
        """Whether the client speaks TLS, be it to a proxy in front of us."""
        return self.scheme == "https"

    @property
    def scheme(self) -> str:
        """``https`` or ``http``."""
        if self.proxies:
            return self._seen.scheme
        return "https" if super().is_secure else "http"

    @property
    def host(self) -> str:
        """The host that the client asked: name or address, and the port if there is one."""
        return self._seen.host if self.proxies else super().host

    @property
    def url(self) -> str:
        """The address that the client asked for, quoted as it came."""
        target = self.target
        if not target.startswith("/"):  # in absolute form, or *
            target = f"/{target.partition('//')[2].partition('/')[2]}"
        return self.absolute(target)

    def absolute(self, path: str) -> str:
        """The address of another path at the host that the client asked.

        The host is what the client says, unless ``server.hosts`` names those that are ours.

        Args:
            path: from its slash on, quoted, as `App.url_for` gives it.
        """
        return f"{self.scheme}://{self.host}{path}"

    @property
    def _seen(self) -> Origin:
        try:
            return self._origin  # type: ignore[has-type,no-any-return]
        except AttributeError:
            scheme = "https" if super().is_secure else "http"
            direct = Origin(super().client, scheme, super().host)
            self._origin = self.proxies.origin(direct, self.headers.get_all)
        return self._origin

    # Where it is, and what goes with it.

    @property
    def root_path(self) -> str:
        """Where the object that handles this is mounted, ``/static``; empty at the root."""
        try:
            return self._root_path
        except AttributeError:
            return ""

    @root_path.setter
    def root_path(self, prefix: str) -> None:
        self._root_path = prefix

    @property
    def path_info(self) -> str:
        """The path below `root_path`, decoded; it begins with a slash."""
        return self.path[len(self.root_path) :] or "/"

    @property
    def state(self) -> dict[str, Any]:
        """What hooks and handlers of this request tell each other."""
        try:
            return self._state
        except AttributeError:
            self._state: dict[str, Any] = {}
        return self._state

    async def session(self) -> Session:
        """What the server remembers of this browser; see `pelotontx.web.session`.

        It is the same object each time. A handler that upgrades the connection may read it, but
        what it changes is not saved.

        Raises:
            HTTPError: 503, the store of sessions does not answer.
            LocalProtocolError: this server keeps no sessions.
        """
        sessions = self.sessions
        if sessions is None:
            raise LocalProtocolError("this server keeps no sessions")
        if not hasattr(self, "_session"):
            session = await sessions.load(self.cookies)
            if not hasattr(self, "_session"):  # else somebody was faster meanwhile
                self._session = session
                self.after(partial(sessions.save, session, self))
        return self._session

    def after(self, hook: Callable[[http.Response], Any]) -> None:
        """Has `hook` called before this one answer is sent, whatever it is, an error page too.

        Args:
            hook: gets the response, after the hooks of the app; plain, coroutine function or
                returning a Deferred. It may change the response, or return another. One that fails
                turns the answer into a 500. Hooks run in the order in which they were added; an
                upgrade has none.
        """
        if self.after_hooks is None:
            self.after_hooks = []
        self.after_hooks.append(hook)


def _parsed(text: str, encoding: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=_ARGUMENTS, encoding=encoding)
    except ValueError:
        raise HTTPError(400, "Too many arguments.") from None

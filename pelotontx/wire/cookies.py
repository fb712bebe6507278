"""Cookies: what a server may ask a browser to keep, and what browsers send back. Pure.

    Set-Cookie: name "=" value *("; " attribute)          RFC 6265, section 4.1, and 6265bis
    Cookie: name "=" value *("; " name "=" value)         section 4.2

Browsers drop, without a word, what breaks the rules of Set-Cookie; here it is the caller's error.
What they send is read as it comes: scripts and other programs on the same host set cookies, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pelotontx.errors import LocalProtocolError

#: Of name and value together: browsers drop longer ones.
COOKIE_BYTES = 4096

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]*")
_PATH = re.compile(r"/[ -:<-~]*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SAME_SITE = frozenset({"Strict", "Lax", "None", ""})
#: In a quoted value, as Python's http.cookies writes them: an octal number, or the character.
_ESCAPED = re.compile(r"\\([0-3][0-7]{2}|.)")


def read_cookies(fields: Iterable[str]) -> dict[str, str]:
    """The cookies by name; those without a name that is a token are left out.

    Of several with one name the first counts: browsers send the one for the longest path first.
    """
    cookies: dict[str, str] = {}
    for field in fields:
        for pair in field.split(";"):
            name, equals, value = pair.partition("=")
            name = name.strip(" \t")
            if equals and _NAME.fullmatch(name):
                cookies.setdefault(name, _unquoted(value.strip(" \t")))
    return cookies


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value[0] == value[-1] == '"':
        return value
    return _ESCAPED.sub(_character, value[1:-1])


def _character(escaped: re.Match[str]) -> str:
    text = escaped[1]
    return text if len(text) == 1 else chr(int(text, 8))


def set_cookie_value(
    name: str,
    value: str,
    *,
    max_age_s: int | None = None,
    path: str = "/",
    domain: str = "",
    secure: bool = True,
    http_only: bool = True,
    same_site: str = "Lax",
) -> str:
    """The value of a Set-Cookie field; see `net.http.Response.set_cookie`.

    Raises:
        LocalProtocolError: something that a browser would drop, or take for something else.
    """
    _check(name, value, path=path, domain=domain, same_site=same_site)
    _check_promises(name, path=path, domain=domain, secure=secure, same_site=same_site)
    parts = [f"{name}={value}"]
    if max_age_s is not None:
        parts.append(f"Max-Age={max(0, int(max_age_s))}")
    if path:
        parts.append(f"Path={path}")
    if domain:
        parts.append(f"Domain={domain}")
    if secure:
        parts.append("Secure")
    if http_only:
        parts.append("HttpOnly")
    if same_site:
        parts.append(f"SameSite={same_site}")
    return "; ".join(parts)


def _check(name: str, value: str, *, path: str, domain: str, same_site: str) -> None:
    if not _NAME.fullmatch(name):
        raise LocalProtocolError(f"not a cookie's name: {name!r}")
    if not _VALUE.fullmatch(value):  # which may be a secret, and is not told
        raise LocalProtocolError(f"the value of cookie {name} has characters that must be quoted")
    if len(name) + len(value) > COOKIE_BYTES:
        raise LocalProtocolError(f"cookie {name} is longer than browsers keep")
    if path and not _PATH.fullmatch(path):
        raise LocalProtocolError(f"not a cookie's path: {path!r}")
    if domain and not _DOMAIN.fullmatch(domain):
        raise LocalProtocolError(f"not a cookie's domain: {domain!r}")
    if same_site not in _SAME_SITE:
        raise LocalProtocolError(f"not a SameSite of cookies: {same_site!r}")


def _check_promises(name: str, *, path: str, domain: str, secure: bool, same_site: str) -> None:
    """What a prefix of the name promises must be so."""
    prefix = name.lower()
    if prefix.startswith("__host-") and not (secure and path == "/" and not domain):
        raise LocalProtocolError(f"{name} must be secure, of path /, and without a domain")
    if prefix.startswith("__secure-") and not secure:
        raise LocalProtocolError(f"{name} must be secure")
    if same_site == "None" and not secure:
        raise LocalProtocolError(f"{name} must be secure to be sent from other sites")

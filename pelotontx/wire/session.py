"""Sessions of web applications: how one lies in the store, and the cookie that names it.

======================  =====================================================================
``session:ID``          HASH, a field a value, each the JSON array ``[value]``; it expires
``ID.ISSUED.SIGNATURE``  the cookie: 128 random bits, Unix seconds, HMAC-SHA256; the first and
                        the last in base64url without padding
======================  =====================================================================

Programs in other languages read and write the same hashes (tempest's Ruby client: ``store``,
``fetch``, ``delete``, ``clear``).
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from math import isfinite
from typing import Any, Final

import msgspec

#: Values in each other; as deep as JSON from clients may be.
_DEPTH_LIMIT: Final = 32

_COOKIE: Final = re.compile(r"([\w-]{22})\.(\d{1,12})\.([\w-]{43})", re.ASCII)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Any]).decode


def session_key(session_id: str) -> str:
    """Where a session lies."""
    return f"session:{session_id}"


def encode_value(value: Any) -> bytes:
    """A value as a field of the hash.

    Raises:
        TypeError: something that JSON does not have, tuples included: it would come back changed.
        ValueError: a number, text or depth that other readers of JSON would stumble over
            (a `UnicodeEncodeError` is one).
    """
    _check(value, 0)
    return _encode([value])


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if value is None or kind in (bool, str):
        return
    if kind is int:
        if not -(2**63) <= value < 2**64:
            raise ValueError("an integer of more than 64 bits")
        return
    if kind is float:
        if not isfinite(value):
            raise ValueError(f"{value} is no number in JSON")
        return
    if kind not in (list, dict):
        raise TypeError(
            "must be None, bool, int, float, str, list or dict, and so all that is in it; "
            f"not {kind.__name__}"
        )
    if depth == _DEPTH_LIMIT:
        raise ValueError(f"lists and dicts more than {_DEPTH_LIMIT} deep in each other")
    if kind is dict:
        for name in value:
            if type(name) is not str:
                raise TypeError(f"the keys of a dict must be str, not {type(name).__name__}")
        value = value.values()
    for item in value:
        _check(item, depth + 1)


def decode_value(field: bytes) -> Any:
    """The value of a field.

    Raises:
        ValueError: not a JSON array of one value.
    """
    try:
        values = _decode(field)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not a JSON array") from None
    if len(values) != 1:
        raise ValueError(f"{len(values)} values instead of one")
    return values[0]


class CookieSigner:
    """Signs the cookies of one name, and knows its own.

    Args:
        secrets: the first signs; cookies that the others have signed are good, too.
        name: the cookie's; one that was signed for another name is not taken.
    """

    def __init__(self, secrets: Sequence[str], name: str) -> None:
        if not secrets or not all(secrets):
            raise ValueError("a secret is missing")
        self._keys = [secret.encode() for secret in secrets]
        self._name = name

    def sign(self, session_id: str, issued_s: int) -> str:
        """The cookie of a session that began at `issued_s`, in Unix seconds."""
        return f"{session_id}.{issued_s}.{self._signature(self._keys[0], session_id, issued_s)}"

    def read(self, cookie: str) -> tuple[str, int] | None:
        """The session's id and when it began; None: not one of ours."""
        match = _COOKIE.fullmatch(cookie)
        if match is None:
            return None
        session_id, issued_s, signature = match[1], int(match[2]), match[3]
        for key in self._keys:
            if hmac.compare_digest(self._signature(key, session_id, issued_s), signature):
                return session_id, issued_s
        return None

    def _signature(self, key: bytes, session_id: str, issued_s: int) -> str:
        text = f"pelotontx session cookie\n{self._name}\n{session_id}\n{issued_s}"
        digest = hmac.digest(key, text.encode(), sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

"""What a function takes, read off its signature once, and the JSON args of a call made into that.

For `pelotontx.backend.callee`, whose docstring says how args and parameters meet.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from types import SimpleNamespace
from typing import Any, Final, TypeAlias, Union, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType

from pelotontx.errors import InvalidArguments, LocalProtocolError

Function: TypeAlias = Callable[..., Any]
_Decode: TypeAlias = Callable[[bytes], Any]

_VARIABLE: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
# What msgspec says: the reason, and for all but the outermost value where.
_COMPLAINT: Final = re.compile(r"(?s)(.*?)(?: - at (`.*`))?")
_NO_VALUE: Final[tuple[Any, ...]] = (None, {}, [])
_ASYNCHRONOUS: Final = ("Awaitable", "Coroutine", "Deferred")


@dataclass(frozen=True, slots=True)
class Signature:
    """How a function is called: ``call(decode(args))``.

    Attributes:
        decode: takes encoded JSON, empty for none; raises `InvalidArguments`. What a type's own
            ``__post_init__`` raises besides `ValueError` and `TypeError` passes through.
        call: takes what `decode` gives.
    """

    decode: _Decode
    call: Callable[[Any], Any]


def read_signature(uri: str, function: Function) -> Signature:
    """Reads a function's parameters.

    Raises:
        LocalProtocolError: when it is not clear what a call's args would be.
    """
    decode, call = _reading(uri, function)

    def checked(args: bytes) -> Any:
        try:
            return decode(args or b"null")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArguments(_told(uri, error)) from None

    return Signature(checked, call)


def _reading(uri: str, function: Function) -> tuple[_Decode, Callable[[Any], Any]]:
    parameters = _parameters(function)
    if parameters is None:
        return _decoder(uri, "args", Any), function
    named = [parameter for parameter in parameters if parameter.kind not in _VARIABLE]
    if len(named) == len(parameters) == 0:
        return _nothing, lambda _: function()
    if len(named) > 1 or any(p.kind is Parameter.KEYWORD_ONLY for p in named):
        if len(named) != len(parameters):
            raise LocalProtocolError(f"{uri}: * and ** beside other parameters: name them all")
        return _several(uri, function, named)
    if all(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        raise LocalProtocolError(f"{uri}: ** alone: name the parameters, or take one dict")
    if named and named[0].annotation is not Parameter.empty:
        return _one(uri, function, named[0])
    return _decoder(uri, "args", Any), function


def _parameters(function: Function) -> Sequence[Parameter] | None:
    """None for some that are written in C, which do not tell."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    # What a partial has bound would still count as a default that a caller may replace.
    bound = function.keywords if isinstance(function, partial) else {}
    return [parameter for name, parameter in parameters.items() if name not in bound]


def _nothing(args: bytes) -> None:
    if msgspec.json.decode(args) not in _NO_VALUE:
        raise msgspec.ValidationError("Takes no arguments")


def _one(
    uri: str, function: Function, parameter: Parameter
) -> tuple[_Decode, Callable[[Any], Any]]:
    """The args are the parameter."""
    hint = _hints(uri, function, [parameter])[parameter.name]
    decode = _decoder(uri, parameter.name, hint)
    if parameter.default is Parameter.empty:
        return decode, function

    def decode_optional(args: bytes) -> Any:
        return UNSET if args == b"null" else decode(args)

    return decode_optional, lambda value: function() if value is UNSET else function(value)


def _several(
    uri: str, function: Function, parameters: Sequence[Parameter]
) -> tuple[_Decode, Callable[[Any], Any]]:
    """The args are an object by parameters' names, or an array in their order."""
    hints = _hints(uri, function, parameters)
    for parameter in parameters:
        if parameter.name not in hints:
            raise LocalProtocolError(
                f"{uri}: parameter {parameter.name} has no type hint: several parameters each need "
                "one (typing.Any takes anything), since callers can set them all"
            )
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise LocalProtocolError(
                f"{uri}: parameter {parameter.name} is positional only: callers need its name"
            )
        _decoder(uri, parameter.name, hints[parameter.name])
    by_name = _struct_decoder(parameters, hints, kw_only=True)
    ordered = [p for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
    has_order = all(p in ordered or p.default is not Parameter.empty for p in parameters)
    by_order = _struct_decoder(ordered, hints, array_like=True) if has_order else by_name

    def decode(args: bytes) -> Any:
        if args == b"null":
            return by_name(b"{}")
        return by_order(args) if args.lstrip()[:1] == b"[" else by_name(args)

    def call(arguments: msgspec.Struct) -> Any:
        given = msgspec.structs.asdict(arguments)
        return function(**{name: value for name, value in given.items() if value is not UNSET})

    return decode, call


def _struct_decoder(
    parameters: Sequence[Parameter], hints: dict[str, Any], **options: Any
) -> _Decode:
    # Left out, a parameter has its function's default, of whatever kind that is.
    fields: list[Any] = [
        (p.name, hints[p.name])
        if p.default is Parameter.empty
        else (p.name, Union[hints[p.name], UnsetType], UNSET)  # noqa: UP007
        for p in parameters
    ]
    struct = msgspec.defstruct("args", fields, forbid_unknown_fields=True, **options)
    return msgspec.json.Decoder(struct).decode


def _decoder(uri: str, name: str, hint: Any) -> _Decode:
    try:
        # A decoder would find out about a foreign class, anywhere in the hint, when it meets one.
        msgspec.json.schema(hint)
        return msgspec.json.Decoder(hint).decode
    except (TypeError, NameError) as error:
        raise LocalProtocolError(
            f"{uri}: parameter {name}: {hint} cannot be read from JSON"
        ) from error


def _hints(uri: str, function: Function, parameters: Sequence[Parameter]) -> dict[str, Any]:
    annotations = {p.name: p.annotation for p in parameters if p.annotation is not Parameter.empty}
    scope = getattr(_code(function), "__globals__", {})
    holder = SimpleNamespace(__annotations__=annotations)
    try:
        return get_type_hints(holder, globalns=scope, include_extras=True)
    except Exception as error:  # a hint may hold any expression
        raise LocalProtocolError(f"{uri}: its type hints cannot be read: {error}") from error


def _code(function: Function) -> Any:
    """The user's own function beneath partials, decorators and ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    inner = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) else getattr(inner, "__call__", inner)  # noqa: B004


def is_asynchronous(function: Function) -> bool:
    """Whether it gives a coroutine or a Deferred, as far as it can be seen without a call.

    Seen are coroutine functions, what `inlineCallbacks` and other well-behaved decorators make of
    functions, and a return type that is a `Deferred`, an `Awaitable` or a `Coroutine`.
    """
    code = _code(function)
    if inspect.iscoroutinefunction(code):
        return True
    if inspect.isgeneratorfunction(code) and code is not function:
        return True
    returns = getattr(code, "__annotations__", {}).get("return")
    if isinstance(returns, str):
        name = returns.partition("[")[0].rpartition(".")[2]
    else:
        name = getattr(get_origin(returns) or returns, "__name__", "")
    return name in _ASYNCHRONOUS


def _told(uri: str, error: Exception) -> str:
    """``shop.price: args.quantity: expected int, got str``."""
    match = _COMPLAINT.fullmatch(str(error))
    reason, path = match.groups() if match is not None else (str(error), None)
    where = (path or "$").replace("`", "").replace("$", "args", 1)
    return f"{uri}: {where}: {reason[:1].lower()}{reason[1:].replace('`', '')}"

"""What a function takes, and what a caller is told when it gets something else."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pytest
from twisted.internet.defer import Deferred, inlineCallbacks

from pelotontx.backend.signature import is_asynchronous, read_signature
from pelotontx.errors import InvalidArguments, LocalProtocolError


class Query(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    quantity: int = 1

    def __post_init__(self) -> None:
        if self.quantity < 0:
            raise ValueError("quantity must not be negative")


@dataclass
class Point:
    x: float
    y: float


class Options(TypedDict):
    limit: int
    order: NotRequired[Literal["up", "down"]]


class Foreign:
    pass


def run(function: Callable[..., Any], args: bytes) -> Any:
    signature = read_signature("shop.f", function)
    return signature.call(signature.decode(args))


def refusal(function: Callable[..., Any], args: bytes) -> str:
    with pytest.raises(InvalidArguments) as caught:
        run(function, args)
    assert caught.value.payload == {"message": str(caught.value), "code": 400}
    return str(caught.value)


def test_one_parameter_without_a_hint_gets_any_json() -> None:
    for args, value in ((b"", None), (b"null", None), (b'{"a":[1]}', {"a": [1]}), (b"[]", [])):
        assert run(lambda args: [args], args) == [value]
        assert run(lambda *args: list(args), args) == [value]
        assert run(lambda args=7: [args], args) == [value]
    assert run(lambda args, **_: [args], b"1") == [1]
    assert run(bool, b'"x"') is True  # one that is written in C


def query(args: Query) -> Query:
    return args


def point(at: Point) -> Point:
    return at


def options(args: Options) -> Options:
    return args


def limited(limit: int = 10) -> int:
    return limit


def scores(args: dict[str, list[int]]) -> dict[str, list[int]]:
    return args


def later_hint(args: "Query") -> Any:
    return args


def test_one_parameter_with_a_hint_is_the_args() -> None:
    assert run(query, b'{"name":"pear"}') == Query("pear", 1)
    assert run(point, b'{"x":1,"y":2.5}') == Point(1.0, 2.5)
    assert run(options, b'{"limit":3}') == {"limit": 3}
    assert run(limited, b"3") == 3
    assert run(limited, b"null") == run(limited, b"") == 10
    assert run(later_hint, b'{"name":"pear"}') == Query("pear", 1)


def test_the_caller_is_told_which_value_is_wrong() -> None:
    told = {
        refusal(query, b'{"name":"a","quantity":"2"}'): "args.quantity: expected int, got str",
        refusal(query, b'{"quantity":2}'): "args: object missing required field name",
        refusal(query, b'{"name":"a","qantity":2}'): "args: object contains unknown field qantity",
        refusal(query, b'{"name":"a","quantity":-1}'): "args: quantity must not be negative",
        refusal(query, b""): "args: expected object, got null",
        refusal(scores, b'{"a":[1,true]}'): "args[...][1]: expected int, got bool",
        refusal(options, b'{"limit":1,"order":"x"}'): "args.order: invalid enum value 'x'",
        refusal(limited, b"1.5"): "args: expected int, got float",
        refusal(scores, b'{"a":[1'): "args: input data was truncated",
    }
    for message, expected in told.items():
        assert message == f"shop.f: {expected}"


def test_hostile_args_are_the_callers_fault() -> None:
    for args in (b"[" * 100_000, b'"\xff"', b"{", b"\xff", b'{"name":"a","\\ud800":1}'):
        assert refusal(query, args).startswith("shop.f: args: ")
        assert refusal(lambda args: args, args).startswith("shop.f: args: ")


def add(a: int, b: int = 5, *, scale: float = 1) -> float:
    return (a + b) * scale


def must(a: int, *, key: str) -> str:
    return key * a


def test_several_parameters_are_an_object_or_an_array() -> None:
    assert run(add, b'{"a":1}') == run(add, b"[1]") == 6
    assert run(add, b'{"a":1,"b":2,"scale":10}') == 30
    assert run(add, b" [1,2]") == 3
    assert run(must, b'{"a":2,"key":"x"}') == "xx"
    assert run(partial(must, 3), b'{"key":"x"}') == "xxx"
    assert refusal(add, b"null") == "shop.f: args: object missing required field a"
    assert refusal(add, b"[]") == "shop.f: args: expected array of at least length 1, got 0"
    assert refusal(add, b"[1,2,3]") == "shop.f: args: expected array of at most length 2"
    assert refusal(add, b'[1,"2"]') == "shop.f: args[1]: expected int, got str"
    assert refusal(add, b'{"a":1,"b":null}') == "shop.f: args.b: expected int, got null"
    assert refusal(add, b'{"a":1,"c":2}') == "shop.f: args: object contains unknown field c"
    assert refusal(add, b"1") == "shop.f: args: expected object, got int"
    assert refusal(must, b"[1]") == "shop.f: args: expected object, got array"


def test_a_default_stays_the_functions_own() -> None:
    default = Foreign()

    def function(a: int, b: Any = default, c: list[int] = [1]) -> Any:  # noqa: B006
        return [b, c]

    assert run(function, b"[1]") == [default, [1]]
    assert run(function, b"[1,null]") == [None, [1]]


def test_no_parameter_takes_nothing() -> None:
    for args in (b"", b"null", b"{}", b" [ ]"):
        assert run(lambda: "ran", args) == "ran"
    for args in (b"0", b'""', b"[0]", b"false"):
        assert refusal(lambda: "ran", args) == "shop.f: args: takes no arguments"


def test_a_caller_cannot_reach_what_a_partial_has_bound() -> None:
    def function(args: Any, secret: str = "") -> list[Any]:
        return [args, secret]

    assert run(partial(function, secret="s"), b'{"secret":"t"}') == [{"secret": "t"}, "s"]


def test_methods_decorated_functions_and_objects_are_read_too() -> None:
    class Shop:
        def price(self, quantity: int) -> int:
            return quantity * 2

        def __call__(self, quantity: int) -> int:
            return quantity * 3

    @wraps(limited)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return limited(*args, **kwargs)

    for function in (Shop().price, Shop(), wrapped):
        assert refusal(function, b'"1"') == "shop.f: args: expected int, got str"
    assert [run(function, b"2") for function in (Shop().price, Shop(), wrapped)] == [4, 6, 2]


def positional_only(a: int, b: int, /) -> None: ...


def stars(a: int, b: int, *rest: int) -> None: ...


def double_star(**names: int) -> None: ...


def half_annotated(args: Any, db="") -> None: ...  # type: ignore[no-untyped-def]


def foreign(args: list[Foreign]) -> None: ...


def ambiguous(args: Query | Point) -> None: ...


def unknown_name(args: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (positional_only, "parameter a is positional only"),
        (stars, "name them all"),
        (double_star, "name the parameters, or take one dict"),
        (half_annotated, "parameter db has no type hint"),
        (foreign, "parameter args: .*Foreign.* cannot be read from JSON"),
        (ambiguous, "cannot be read from JSON"),
        (unknown_name, "its type hints cannot be read: name 'Nowhere' is not defined"),
    ],
)
def test_what_is_not_clear_is_refused_when_it_is_registered(
    function: Callable[..., Any], text: str
) -> None:
    with pytest.raises(LocalProtocolError, match=f"^shop.f: .*{text}"):
        read_signature("shop.f", function)


def test_metadata_of_hints_is_checked() -> None:
    def function(args: Annotated[int, msgspec.Meta(ge=1)]) -> int:
        return args

    assert run(function, b"1") == 1
    assert refusal(function, b"0") == "shop.f: args: expected int >= 1"


def test_a_failure_of_the_functions_own_is_no_fault_of_the_args() -> None:
    def function(args: int) -> Any:
        return msgspec.json.decode(b"x")

    with pytest.raises(msgspec.DecodeError):
        run(function, b"1")


# What runs in the reactor's thread


async def coroutine(args: Any) -> None: ...


def deferred(args: Any) -> Deferred[int]:
    return Deferred()


def deferred_later(args: Any) -> "Deferred[int]":
    return Deferred()


@inlineCallbacks
def old_style(args: Any) -> Any:
    yield Deferred()


@wraps(coroutine)
def decorated(*args: Any) -> Any:
    return Deferred.fromCoroutine(coroutine(*args))


class Called:
    async def __call__(self, args: Any) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        *(coroutine, deferred, deferred_later, old_style, decorated, Called()),
        partial(coroutine, 1),
        partial(deferred),
    ],
)
def test_asynchronous_functions_are_told_by_their_looks(function: Callable[..., Any]) -> None:
    assert is_asynchronous(function)


@pytest.mark.parametrize("function", [query, limited, lambda args: args, print, partial(query)])
def test_plain_functions_are_not(function: Callable[..., Any]) -> None:
    assert not is_asynchronous(function)

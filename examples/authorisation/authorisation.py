"""Who may connect, call, subscribe and publish: tokens, and channels that belong to users.

A client shows its token in one of three ways:

    Authorization: Bearer TOKEN                      programs
    Sec-WebSocket-Protocol: juggler.0, bearer.TOKEN  browsers, which can set no other header
    ws://host/ws?token=TOKEN                         whoever can do neither; it may end up in logs
"""

import hmac
from typing import Any, TypedDict

from pelotontx.backend.callee import Callee
from pelotontx.gateway.juggler import (
    Gateway,
    Message,
    Next,
    RequestRefused,
    Session,
    logging_middleware,
)

# In a real application: a database, or signed tokens.
TOKENS = {"ann": "ann-s-secret-token", "bob": "bob-s-secret-token"}
ROOMS = {"room.kitchen": {"ann", "bob"}, "room.office": {"ann"}}

gateway = Gateway()
gateway.middleware(logging_middleware())
callee = Callee()


def token_of(session: Session) -> str:
    """The token that the client shows, empty for none."""
    scheme, _, token = session.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    for subprotocol in session.subprotocols:
        if subprotocol.startswith("bearer."):
            return subprotocol.removeprefix("bearer.")
    return session.query.get("token", [""])[-1]


@gateway.on_connect
def log_in(session: Session) -> None:
    """A client without a token that somebody has gets 401 instead of a WebSocket."""
    token = token_of(session)
    for name, right in TOKENS.items():
        if hmac.compare_digest(token.encode(), right.encode()):
            session.state.user = name
            return
    raise RequestRefused(401, "a token is needed")


@gateway.on_subscribe
@gateway.on_publish
def enter_room(session: Session, message: Message) -> None:
    """Rooms are for their members, and everybody has a channel: user.NAME."""
    user = session.state.user
    if message.pattern:
        raise RequestRefused(403, "a pattern reaches everybody's channels")
    if message.channel != f"user.{user}" and user not in ROOMS.get(message.channel, ()):
        raise RequestRefused(403, f"{message.channel} is not for you")


@gateway.on_call
def own_functions(session: Session, message: Message) -> None:
    """No other functions than those for users."""
    if not message.uri.startswith("user."):
        raise RequestRefused(403, f"{message.uri} is not for you")


@gateway.middleware
async def sign(session: Session, message: Message, next: Next) -> None:
    """Callees and subscribers learn who it was from us, not from the client."""
    if message.direction == "in" and message.name in ("CALL", "PUB"):
        message.args = {"user": session.state.user, "args": message.args}
    await next(message)


class Signed(TypedDict):
    """What `sign` makes of the args of a call."""

    user: str
    args: Any


@callee.function("user.greet")
async def greet(request: Signed) -> str:
    return f"Hello, {request['user']}!"

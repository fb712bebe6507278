"""What a request says of its two ends, for applications that have their own words for it."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from pelotontx.net.tcp import peer_name
from pelotontx.web.request import Request


def origin_form(request: Request) -> bytes:
    """Path and query as they came, without the host that an absolute target has."""
    target = request.target
    if not target.startswith("/") and target != "*":
        target = f"/{target.partition('//')[2].partition('/')[2]}"
    return target.encode("ascii")


def server_of(request: Request) -> tuple[str, int]:
    """Name and port as the client knows them, from the Host field; without brackets.

    ``localhost`` where an HTTP/1.0 client names none.
    """
    name, colon, port = request.host.rpartition(":")
    if not colon or not port.isdigit():  # "[::1]" ends in a bracket
        name, port = request.host.removesuffix(":"), ""
    default = 443 if request.scheme == "https" else 80
    return name.strip("[]") or "localhost", int(port or default)


def client_of(request: Request) -> tuple[str, int]:
    """Address and port of the client.

    The port is 0 where a proxy tells the address only, the address empty behind a UNIX socket.
    """
    client, peer = request.client, request.peer
    if isinstance(peer, IPv4Address | IPv6Address) and peer_name(peer) == client:
        return client, peer.port
    return ("" if client == "unix" else client), 0


def client_address(request: Request) -> IAddress:
    """The same as Twisted has it."""
    client, peer = request.client, request.peer
    if peer is not None and client == peer_name(peer):
        return peer
    if client in ("", "unix"):
        return UNIXAddress(None)
    return (IPv6Address if ":" in client else IPv4Address)("TCP", client, 0)

"""Registers ``twistd peloton``. Names strings only: reading the list imports nothing of ours."""

from twisted.application.service import ServiceMaker

peloton = ServiceMaker(
    "peloton",
    "pelotontx.tap",
    "The real-time application server: HTTP, WebSocket RPC and pub/sub on one broker.",
    "peloton",
)

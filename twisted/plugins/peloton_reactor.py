"""Registers ``twistd --reactor=peloton``. Names strings only: reading the list imports nothing."""

from twisted.application.reactors import Reactor

peloton_reactor = Reactor(
    "peloton",
    "pelotontx.net.reactor",
    "epoll(7) with direct dispatch and one send a connection and turn.",
)

"""Small things over Deferred; anyone may use them, in a server or without one.

    later(clock, 1.0, print, "hi")                  after a while
    await timeout(clock, 5, load())                 no longer than
    a, b = await together(load_a(), load_b())       in parallel
    await from_callback(query, "name")              a function that calls back
    watch = on_readable(reactor, sock, read)        sockets that Twisted does not know
    stream = Stream()                               a bounded queue with an end
    cell = Cell(0)                                  a value that tells when it is set
    tasks = Tasks()                                 coroutines of a service

A program that runs until a coroutine has ended needs nothing of ours: that is
`twisted.internet.task.react`, which runs the reactor, stops it, and exits with 1 after a failure.
"""

from pelotontx.flow.collector import spare_collector
from pelotontx.flow.deferreds import Tasks, from_callback, later, timeout
from pelotontx.flow.sockets import (
    Watch,
    on_acceptable,
    on_connectable,
    on_readable,
    on_writable,
    once_acceptable,
    once_connectable,
    once_readable,
    once_writable,
)
from pelotontx.flow.streams import Cell, Observation, Stream
from pelotontx.flow.together import together

__all__ = [
    "Cell",
    "Observation",
    "Stream",
    "Tasks",
    "Watch",
    "from_callback",
    "later",
    "on_acceptable",
    "on_connectable",
    "on_readable",
    "on_writable",
    "once_acceptable",
    "once_connectable",
    "once_readable",
    "once_writable",
    "spare_collector",
    "timeout",
    "together",
]

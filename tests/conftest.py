"""Chooses the reactor before anything imports one: PELOTON_TEST_REACTOR=peloton|epoll|asyncio.

For asyncio pytest-twisted wants to be told too, and installs it: ``pytest --reactor asyncio``.
"""

import os

_REACTOR = os.environ.get("PELOTON_TEST_REACTOR", "peloton")

if _REACTOR == "peloton":
    from pelotontx.net import reactor as _reactor

    _reactor.install()
elif _REACTOR == "epoll":
    from twisted.internet import epollreactor

    epollreactor.install()
elif _REACTOR != "asyncio":
    raise RuntimeError(f"PELOTON_TEST_REACTOR={_REACTOR}: peloton, epoll or asyncio")

"""A deployment in a few lines: twistd -ny minimal.tac

The reactor is twistd's own choice here; `twistd --reactor=peloton -ny minimal.tac` is faster.
"""

import os

from twisted.application.service import Application
from twisted.internet import reactor

from pelotontx import config, services

settings = config.load(
    None,
    environ=os.environ,
    overrides={"server.listen": [os.environ.get("LISTEN", "tcp:8080:interface=127.0.0.1")]},
)
application = Application("pelotontx")
services.build(settings, reactor=reactor).setServiceParent(application)

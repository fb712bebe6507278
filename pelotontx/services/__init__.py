"""From a configuration to services: what a server is made of, how it starts and how it stops."""

from pelotontx.services.brokers import open_broker
from pelotontx.services.build import build
from pelotontx.services.callees import callee_service
from pelotontx.services.development import build_reloading
from pelotontx.services.phases import Phase, Server

__all__ = ["Phase", "Server", "build", "build_reloading", "callee_service", "open_broker"]

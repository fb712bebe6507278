"""What callees of a kill test serve: each call is noted outside of Redis, then answered."""

from __future__ import annotations

URIS = ("chaos.a", "chaos.b", "chaos.c", "chaos.d")

FUNCTIONS = f"""
import os, random, time
from twisted.internet import reactor
from pelotontx.backend.callee import Callee
from pelotontx.flow import later

log = os.open("executions.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
callee = Callee()

def note(args):
    os.write(log, f"{{args}} {{time.time():.3f}} in {{os.getpid()}}\\n".encode())
    return args

async def note_and_wait(args):
    note(args)
    await later(reactor, random.random() * 0.05)
    return args

for uri in {URIS[:2]}:
    callee.function(uri)(note)
for uri in {URIS[2:]}:
    callee.function(uri)(note_and_wait)
"""

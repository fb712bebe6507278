"""The kill tests in short: each kind of fault once, one seed. ``make chaos`` runs more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from tests.chaos.grounds import ClusterGround, Ground, RedisGround, SentinelGround
from tests.chaos.rig import run


@pytest_twisted.ensureDeferred
async def test_no_invariant_breaks_when_each_kind_of_fault_happens_once(tmp_path: Path) -> None:
    async def run_on(ground: Ground) -> None:
        folder = tmp_path / type(ground).__name__
        folder.mkdir()
        # What programs do when they are killed is the same everywhere.
        kill_programs = isinstance(ground, RedisGround)
        await run(reactor, ground, folder, seed=1, kill_programs=kill_programs)

    # At the same time, as most of it is waiting; and each to its end.
    grounds: list[Any] = [kind(reactor) for kind in (RedisGround, SentinelGround, ClusterGround)]
    runs = [Deferred.fromCoroutine(run_on(ground)) for ground in grounds]
    outcomes: list[tuple[bool, Any]] = await DeferredList(runs, consumeErrors=True)
    for succeeded, outcome in outcomes:
        if not succeeded:
            outcome.raiseException()

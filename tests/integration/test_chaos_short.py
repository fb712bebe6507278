"""The kill tests' short form: every fault once, one seed. ``make chaos`` runs more and longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.chaos.grounds import (
    ClusterGround,
    RedisGround,
    SentinelGround,
    SplitSentinelGround,
)
from tests.chaos.rig import run


@pytest.mark.parametrize("kind", [RedisGround, SentinelGround, SplitSentinelGround, ClusterGround])
@pytest_twisted.ensureDeferred
async def test_no_invariant_breaks_when_each_fault_happens_once(kind: Any, tmp_path: Path) -> None:
    kill_programs = kind is RedisGround  # what they do then is the same everywhere
    await run(reactor, kind(reactor), tmp_path, seed=1, kill_programs=kill_programs)

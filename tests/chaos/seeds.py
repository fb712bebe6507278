"""The kill tests in full: five seeds on each kind of broker, seven minutes (``make chaos``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.chaos.grounds import ClusterGround, RedisGround, SentinelGround
from tests.chaos.rig import run

ROUNDS = 12


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [RedisGround, SentinelGround, ClusterGround])
@pytest_twisted.ensureDeferred
async def test_no_invariant_breaks_under_random_faults(
    kind: Any, seed: int, tmp_path: Path
) -> None:
    await run(reactor, kind(reactor), tmp_path, seed=seed, rounds=ROUNDS)

"""The garbage collector of a process that is set up once and then serves; for entry points."""

from __future__ import annotations

import gc


def spare_collector() -> None:
    """Keeps the garbage collector off what a process consists of once it is set up.

    Without, each full collection walks every module and service, and whoever calls then waits.
    For entry points, once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)

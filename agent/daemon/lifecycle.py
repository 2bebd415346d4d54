"""What every role does when it starts and ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.config.settings import PoolSettings
from agent.errors import FailedPrecondition
from agent.pools.ledger import Ledger
from agent.pools.space import Thresholds

STOP_GRACE_S = 10.0
"""How long calls in flight may take to end at shutdown."""


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def ledger(pool: PoolSettings) -> Ledger:
    return Ledger(pool.overprovision_ratio, Thresholds(pool.warning_percent / 100, pool.reserve_percent / 100))


def make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FailedPrecondition(
            f"state folder {folder} cannot be made: {error.strerror}; check --state-dir"
        ) from error

"""Why a disk is not used, or needs attention."""

from __future__ import annotations

from enum import StrEnum

from agent.errors import FailedPrecondition


class Why(StrEnum):
    """Why a disk is not used: the reason of its condition `Usable`."""

    INELIGIBLE = "Ineligible"
    """Something is on it, or it is no disk to be used."""
    OTHER_POOL = "OtherPool"
    """It carries a pool, but not the one that it had or should have."""
    POOL_LOST = "PoolLost"
    """It had a pool, and that is not there."""
    NO_DRIVER = "NoDriver"
    """This agent, or its target, cannot use such a disk."""
    WRITE_CACHE = "WriteCache"
    """It keeps back what was synced (or does not tell), and a power cut loses that."""
    SHRUNK = "Shrunk"
    """It has become smaller than its pool."""
    GROWTH_LIMIT = "GrowthLimit"
    """It has grown further than its pool can follow."""
    REMOVED = "Removed"
    """Its file was removed while the target has it open: everything goes when the target starts anew."""
    IN_USE = "InUse"
    """Volumes or snapshots live on it: it cannot be released."""
    FAILED = "Failed"


class Refused(FailedPrecondition):
    """A disk is left alone. `why` is for programs, the text for people."""

    def __init__(self, why: Why, text: str) -> None:
        self.why = why
        super().__init__(text)

"""What a target's refusal of room is told to be."""

from __future__ import annotations

import pytest

from agent.errors import RpcError
from agent.volumes.rules.plan import CreateLvol, DesiredReplica, Listener
from agent.volumes.target.refusals import refusal

GIB = 1 << 30
NO_MEMORY = RpcError("bdev_lvol_create", -32602, "Cannot allocate memory")
NO_SPACE = RpcError("bdev_lvol_create", -32602, "No space left on device")


@pytest.mark.parametrize(
    ("size_bytes", "error", "says"),
    [
        (GIB, NO_MEMORY, "the metadata pages of pool p are used up"),
        (GIB, NO_SPACE, "pool p refused 1073741824 bytes: No space left on device"),
        (20 * GIB, NO_MEMORY, "no memory to describe a volume so much larger than its pool"),
        (1000 * GIB, NO_MEMORY, "more than pool p can ever hold"),
    ],
)
def test_causes_of_no_room(size_bytes: int, error: RpcError, says: str) -> None:
    desired = DesiredReplica("v", "p", "nqn", "S", True, size_bytes, True, frozenset(), Listener("127.0.0.1", 4420))
    told = refusal(desired, CreateLvol("p", "v", size_bytes, True), error, 100 * GIB, 10 * GIB)
    assert says in str(told)

"""Placement takes the roomiest pool of the tier, and no pool is ever promised beyond what it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import OutOfRange, ResourceExhausted
from agent.model import Provisioning, Tier
from agent.volumes.placement import Ledger, Pool, Request, choose

MIB = 1 << 20
GIB = 1 << 30


def ledger(*pools: Pool, ratio: float = 2.0) -> Ledger:
    made = Ledger(ratio)
    for pool in pools:
        made.set_pool(pool)
    return made


def pool(disk: str, gib: int, tier: Tier = Tier.SSD, node: str = "n1") -> Pool:
    return Pool(disk, node, tier, gib * GIB, gib * GIB, MIB)


def request(size: int, kind: Provisioning = Provisioning.THIN, **more: object) -> Request:
    return Request(size, limit_bytes=0, tier=Tier.SSD, provisioning=kind, **more)  # type: ignore[arg-type]


def test_the_roomiest_pool_of_the_tier_is_chosen_and_the_size_rounded_up() -> None:
    pools = ledger(pool("small", 1), pool("large", 3), pool("other-tier", 9, Tier.HDD))
    chosen, size = choose(pools, request(MIB + 1))
    assert (chosen.disk, size) == ("large", 2 * MIB)


def test_a_node_requirement_and_disks_to_avoid_are_honoured() -> None:
    pools = ledger(pool("a", 3), pool("b", 2), pool("c", 1, node="n2"))
    assert choose(pools, request(MIB, node="n2"))[0].disk == "c"
    assert choose(pools, request(MIB, avoid=frozenset({"a"})))[0].disk == "b"


@pytest.mark.parametrize(
    ("size", "kind", "error"),
    [
        (3 * GIB, Provisioning.THIN, OutOfRange),
        (2 * GIB, Provisioning.THICK, OutOfRange),
        (1 << 62, Provisioning.THIN, OutOfRange),
    ],
)
def test_what_can_never_fit_is_out_of_range(size: int, kind: Provisioning, error: type[Exception]) -> None:
    with pytest.raises(error):
        choose(ledger(pool("a", 1)), request(size, kind))


def test_no_room_now_is_exhausted_and_room_comes_back() -> None:
    pools = ledger(pool("a", 1))
    pools.reserve("v1", "a", GIB, Provisioning.THICK)
    with pytest.raises(ResourceExhausted):
        choose(pools, request(MIB))
    pools.release("v1")
    assert choose(pools, request(MIB))[0].disk == "a"


def test_no_disk_of_the_tier_is_exhausted() -> None:
    with pytest.raises(ResourceExhausted, match="ssd"):
        choose(ledger(pool("a", 1, Tier.NVME)), request(MIB))


def test_a_limit_below_the_next_cluster_is_out_of_range() -> None:
    with pytest.raises(OutOfRange, match="limit_bytes"):
        choose(ledger(pool("a", 1)), Request(MIB + 1, MIB + 2, Tier.SSD, Provisioning.THIN))


def test_refreshing_a_pool_keeps_what_is_promised() -> None:
    pools = ledger(pool("a", 1))
    pools.reserve("v1", "a", GIB, Provisioning.THIN)
    pools.set_pool(pool("a", 1))
    assert pools.capacity(Tier.SSD, Provisioning.THIN) == GIB


volumes = st.lists(
    st.tuples(st.integers(1, 600), st.sampled_from(Provisioning), st.booleans()), min_size=1, max_size=60
)


@given(volumes)
def test_promises_never_exceed_a_pool(history: list[tuple[int, Provisioning, bool]]) -> None:
    pools = ledger(pool("a", 1), pool("b", 1))
    placed: list[str] = []
    for index, (mib, kind, then_remove) in enumerate(history):
        try:
            chosen, size = choose(pools, request(mib * MIB, kind))
        except ResourceExhausted:
            continue
        name = f"v{index}"
        pools.reserve(name, chosen.disk, size, kind)
        placed.append(name)
        if then_remove:
            pools.release(placed.pop(0))
        for each in pools.pools():
            assert 0 <= each.promised_bytes <= each.size_bytes
            assert 0 <= each.free_bytes <= each.size_bytes
    for name in placed:
        pools.release(name)
    assert [each.promised_bytes for each in pools.pools()] == [0, 0]

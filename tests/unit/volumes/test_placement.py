"""Placement takes the roomiest pool of the tier, and no pool is ever promised beyond what it has."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import OutOfRange, ResourceExhausted
from agent.model import Provisioning, Tier
from agent.volumes.placement import Capacity, Ledger, Pool, Request, choose
from agent.volumes.topology import Requirement, Segment

MIB = 1 << 20
GIB = 1 << 30


def ledger(*pools: Pool, ratio: float = 2.0) -> Ledger:
    made = Ledger(ratio)
    for pool in pools:
        made.set_pool(pool)
    return made


def pool(disk: str, gib: int, tier: Tier = Tier.SSD, node: str = "n1", zone: str = "") -> Pool:
    return Pool(disk, node, tier, gib * GIB, gib * GIB, MIB, zone)


def in_nodes(*nodes: str) -> tuple[Segment, ...]:
    return tuple(Segment(node=node) for node in nodes)


def request(size: int, kind: Provisioning = Provisioning.THIN, **more: object) -> Request:
    return Request(size, limit_bytes=0, tier=Tier.SSD, provisioning=kind, **more)  # type: ignore[arg-type]


def test_the_roomiest_pool_of_the_tier_is_chosen_and_the_size_rounded_up() -> None:
    pools = ledger(pool("small", 1), pool("large", 3), pool("other-tier", 9, Tier.HDD))
    chosen, size = choose(pools, request(MIB + 1))
    assert (chosen.disk, size) == ("large", 2 * MIB)


def test_disks_to_avoid_are_avoided() -> None:
    assert choose(ledger(pool("a", 3), pool("b", 2)), request(MIB, avoid=frozenset({"a"})))[0].disk == "b"


@pytest.mark.parametrize(
    ("topology", "disk"),
    [
        (Requirement(), "a"),
        (Requirement(requisite=in_nodes("n2")), "c"),
        (Requirement(requisite=in_nodes("n9", "n2", "n3")), "c"),
        (Requirement(requisite=in_nodes("n2", "n3"), preferred=in_nodes("n3", "n2")), "d"),
        (Requirement(requisite=in_nodes("n2", "n3"), preferred=in_nodes("n1", "n3")), "d"),
        (Requirement(preferred=in_nodes("n3")), "d"),
        (Requirement(preferred=in_nodes("n9")), "a"),
        (Requirement(requisite=(Segment(zone="z2"),)), "c"),
        (Requirement(requisite=(Segment(zone="z2"),), preferred=(Segment("n3", "z2"), Segment("n2", "z2"))), "d"),
        (Requirement(requisite=(Segment(zone="z2"), Segment(unknown="rack=7"))), "c"),
        (Requirement(requisite=(Segment(),)), "a"),
    ],
)
def test_requisite_limits_and_preferred_orders(topology: Requirement, disk: str) -> None:
    pools = ledger(pool("a", 9), pool("b", 8), pool("c", 2, node="n2", zone="z2"), pool("d", 1, node="n3", zone="z2"))
    assert choose(pools, request(MIB, topology=topology))[0].disk == disk


def test_the_next_preferred_place_when_the_first_is_full() -> None:
    pools = ledger(pool("a", 9), pool("b", 1, node="n2"), pool("c", 2, node="n3"))
    wanted = Requirement(in_nodes("n2", "n3"), in_nodes("n2", "n3"))
    pools.reserve("v", "b", GIB, Provisioning.THICK)
    assert choose(pools, request(MIB, topology=wanted))[0].disk == "c"
    pools.reserve("w", "c", 2 * GIB, Provisioning.THICK)
    with pytest.raises(ResourceExhausted, match="in node n2 or node n3"):
        choose(pools, request(MIB, topology=wanted))


@pytest.mark.parametrize("nowhere", [Segment(node="n9"), Segment("n1", "z2"), Segment(unknown="rack=7"), Segment("N1")])
def test_a_place_without_disks_is_exhausted_and_named(nowhere: Segment) -> None:
    pools = ledger(pool("a", 9), pool("b", 1, node="n2", zone="z2"))
    with pytest.raises(ResourceExhausted, match=f"no ready disk of tier ssd in {re.escape(str(nowhere))}"):
        choose(pools, request(MIB, topology=Requirement(requisite=(nowhere,))))
    assert pools.capacity(Tier.SSD, Provisioning.THIN, nowhere) == Capacity()


def test_capacity_is_what_choose_would_give() -> None:
    pools = ledger(pool("a", 2), pool("b", 1, node="n2", zone="z2"), pool("c", 5, Tier.HDD, "n2", "z2"), ratio=4)
    assert pools.capacity(Tier.SSD, Provisioning.THICK) == Capacity(3 * GIB, 2 * GIB, MIB)
    assert pools.capacity(Tier.SSD, Provisioning.THIN, Segment(zone="z2")) == Capacity(4 * GIB, 4 * GIB, MIB)
    assert pools.capacity(Tier.NVME, Provisioning.THIN) == Capacity()
    pools.reserve("v", "b", GIB, Provisioning.THICK)
    assert pools.capacity(Tier.SSD, Provisioning.THIN, Segment(node="n2")) == Capacity(0, 0, MIB)


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
    assert pools.capacity(Tier.SSD, Provisioning.THIN).largest_bytes == GIB


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

"""Placement takes the roomiest pool of the tier, and no pool is ever promised beyond what it has."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import OutOfRange, ResourceExhausted
from agent.model import Provisioning, Tier
from agent.pools.ledger import Capacity, Ledger, Pool
from agent.pools.space import Space, Thresholds
from agent.pools.topology import Requirement, Segment
from agent.volumes.rules.placement import Request, choose

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


RESERVE = Thresholds(warning=0.5, reserve=0.25)


def test_a_pool_below_its_reserve_takes_nothing_new_and_the_remedy_is_named() -> None:
    pools = Ledger(2.0, RESERVE)
    pools.set_pool(replace(pool("a", 1), free_bytes=GIB // 4 - MIB))
    for kind in Provisioning:
        assert pools.capacity(Tier.SSD, kind) == Capacity(0, 0, MIB)
        with pytest.raises(ResourceExhausted, match=r"pool quarry-a is nearly full .*\(255 of 1024 MiB.*; delete"):
            choose(pools, request(MIB, kind))
    with pytest.raises(ResourceExhausted, match="quarry-a"):
        pools.require_space("a")
    pools.set_pool(pool("b", 1))
    assert choose(pools, request(MIB))[0].disk == "b"
    pools.require_space("b")
    pools.require_space("unknown")


def test_a_thick_volume_leaves_the_reserve() -> None:
    pools = Ledger(2.0, RESERVE)
    pools.set_pool(pool("a", 1))
    assert pools.capacity(Tier.SSD, Provisioning.THICK).largest_bytes == 768 * MIB
    with pytest.raises(OutOfRange):
        choose(pools, request(769 * MIB, Provisioning.THICK))
    chosen, size = choose(pools, request(768 * MIB, Provisioning.THICK))
    pools.reserve("v", chosen.disk, size, Provisioning.THICK)
    assert pools.space(chosen) is Space.LOW
    assert pools.capacity(Tier.SSD, Provisioning.THICK).largest_bytes == 0
    assert pools.capacity(Tier.SSD, Provisioning.THIN).largest_bytes == 512 * MIB


@pytest.mark.parametrize(
    ("free", "space"),
    [
        (GIB, Space.AMPLE),
        (512 * MIB, Space.AMPLE),
        (511 * MIB, Space.LOW),
        (256 * MIB, Space.LOW),
        (255 * MIB, Space.RESERVED),
        (MIB, Space.RESERVED),
        (MIB - 1, Space.FULL),
        (0, Space.FULL),
    ],
)
def test_thresholds(free: int, space: Space) -> None:
    assert RESERVE.space(GIB, free, MIB) is space


def test_free_space_read_before_a_thick_volume_was_placed() -> None:
    """The target's answer is older than the reservation: its clusters count as taken."""
    pools = ledger(pool("a", 1))
    pools.reserve("u", "a", 128 * MIB, Provisioning.THICK)
    as_of = pools.now
    pools.reserve("v", "a", 512 * MIB, Provisioning.THICK)
    pools.set_pool(replace(pool("a", 1), free_bytes=896 * MIB), as_of)
    seen = pools.pool("a")
    assert seen is not None and seen.free_bytes == 384 * MIB
    pools.set_pool(replace(pool("a", 1), free_bytes=384 * MIB), pools.now)
    seen = pools.pool("a")
    assert seen is not None and seen.free_bytes == 384 * MIB


class Promises(RuleBasedStateMachine):
    """Volumes of any kind and place come, grow, write and go on several pools; the real free space is known late."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.volumes: dict[str, tuple[str, int, Provisioning]] = {}
        self.written: dict[str, int] = {}

    @initialize(
        ratio=st.floats(1, 20),
        reserve=st.floats(0, 0.5),
        sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    )
    def start(self, ratio: float, reserve: float, sizes: list[int]) -> None:
        self.ratio, self.thresholds = ratio, Thresholds(reserve, reserve)
        self.ledger = Ledger(ratio, self.thresholds)
        self.sizes = {f"d{index}": mib * MIB for index, mib in enumerate(sizes)}
        for disk in self.sizes:
            self.ledger.set_pool(self.seen(disk))

    def seen(self, disk: str) -> Pool:
        size, number = self.sizes[disk], int(disk[1:])
        return Pool(disk, f"n{number % 2}", Tier.SSD, size, self.free(disk), MIB, f"z{number}")

    def free(self, disk: str) -> int:
        """What the target would answer."""
        taken = sum(
            size if kind is Provisioning.THICK else self.written[name]
            for name, (at, size, kind) in self.volumes.items()
            if at == disk
        )
        return self.sizes[disk] - taken

    @rule(mib=st.integers(1, 5000), kind=st.sampled_from(Provisioning), zone=st.sampled_from(["", "z0", "z1", "z9"]))
    def create(self, mib: int, kind: Provisioning, zone: str) -> None:
        where = Requirement((Segment(zone=zone),) if zone else ())
        room = self.ledger.capacity(Tier.SSD, kind, Segment(zone=zone)).largest_bytes
        try:
            chosen, size = choose(self.ledger, request(mib * MIB, kind, topology=where))
        except (ResourceExhausted, OutOfRange):
            assert mib * MIB > room, "capacity promised what was then refused"
            return
        assert mib * MIB == size <= room
        assert zone in ("", chosen.zone)
        if kind is Provisioning.THICK and size > self.free(chosen.disk):
            return  # written to meanwhile: the target itself refuses
        self.count += 1
        self.ledger.reserve(f"v{self.count}", chosen.disk, size, kind)
        self.volumes[f"v{self.count}"], self.written[f"v{self.count}"] = (chosen.disk, size, kind), 0

    @precondition(lambda self: self.volumes)
    @rule(data=st.data(), more=st.integers(1, 1000))
    def grow(self, data: st.DataObject, more: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.volumes)))
        disk, size, kind = self.volumes[name]
        grown = size + more * MIB
        if not self.ledger.can_grow(name, grown) or (kind is Provisioning.THICK and more * MIB > self.free(disk)):
            return
        self.ledger.reserve(name, disk, grown, kind)
        self.volumes[name] = disk, grown, kind

    @precondition(lambda self: self.volumes)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.volumes)))
        self.ledger.release(name)
        del self.volumes[name], self.written[name]

    @precondition(lambda self: self.volumes)
    @rule(data=st.data(), mib=st.integers(1, 1000))
    def write(self, data: st.DataObject, mib: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.volumes)))
        disk, size, kind = self.volumes[name]
        if kind is Provisioning.THIN:
            more = min(mib * MIB, size - self.written[name], self.free(disk))
            self.written[name] += more

    @rule()
    def refresh(self) -> None:
        for disk in self.sizes:
            self.ledger.set_pool(self.seen(disk), self.ledger.now)
            pool = self.ledger.pool(disk)
            assert pool is not None and pool.free_bytes == self.free(disk)

    @invariant()
    def no_pool_is_promised_beyond_ratio_times_size(self) -> None:
        for disk, size in self.sizes.items():
            here = [(bytes_, kind) for at, bytes_, kind in self.volumes.values() if at == disk]
            thick = sum(bytes_ for bytes_, kind in here if kind is Provisioning.THICK)
            thin = sum(bytes_ for bytes_, kind in here if kind is Provisioning.THIN)
            assert thick <= size
            assert thin <= (size - thick) * self.ratio
            pool = self.ledger.pool(disk)
            assert pool is not None and 0 <= pool.free_bytes <= size
            assert pool.promised_bytes == pytest.approx(thick + thin / self.ratio)

    @invariant()
    def nothing_is_given_below_the_reserve(self) -> None:
        for pool in self.ledger.pools():
            if pool.free_bytes < self.thresholds.reserve_bytes(pool.size_bytes):
                assert {self.ledger.room(pool, kind) for kind in Provisioning} == {0}


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

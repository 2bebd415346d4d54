"""The plan converges from any observed state, closes doors before it opens any, and is empty once all is right."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Qos
from agent.volumes.rules import plan as p
from agent.volumes.target.actions import applied

HERE = p.Listener("127.0.0.1", 4420)
UUID = "5b1f0f3e-0000-4000-8000-000000000001"

hosts = st.frozensets(st.sampled_from(["nqn.a", "nqn.b", "nqn.c"]))
qos = st.builds(Qos, rw_iops=st.sampled_from([0, 1000]), rw_bytes_per_second=st.sampled_from([0, 1 << 20]))
sizes = st.integers(1, 64).map(lambda clusters: clusters << 20)
desired_replicas = st.builds(
    p.DesiredReplica,
    volume=st.just("vol-1"),
    pool=st.just("quarry-d"),
    nqn=st.just("nqn.v"),
    serial=st.just("Q1"),
    present=st.booleans(),
    size_bytes=sizes,
    thin=st.booleans(),
    hosts=hosts,
    listener=st.just(HERE),
    qos=qos,
    lvol_uuid=st.sampled_from(["", "", UUID, "5b1f0f3e-0000-4000-8000-0000000010c7"]),
)
observed_replicas = st.builds(
    p.ObservedReplica,
    lvol=st.none() | st.builds(p.LvolSeen, uuid=st.just(UUID), size_bytes=sizes, qos=qos),
    subsystem=st.none()
    | st.builds(
        p.SubsystemSeen,
        hosts=hosts,
        listeners=st.frozensets(st.sampled_from([HERE, p.Listener("10.0.0.1", 4420)])),
        namespace=st.sampled_from(["", UUID, "5b1f0f3e-0000-4000-8000-00000000dead"]),
    ),
)


def run(rounds: tuple[p.Round, ...], seen: p.ObservedReplica) -> p.ObservedReplica:
    for actions in rounds:
        for action in actions:
            seen = applied(seen, action, UUID if isinstance(action, p.CreateLvol) else "")
    return seen


@given(desired_replicas, observed_replicas)
def test_carrying_out_the_plan_leaves_nothing_to_do(desired: p.DesiredReplica, observed: p.ObservedReplica) -> None:
    after = run(p.plan(desired, observed), observed)
    assert p.plan(desired, after) == ()


@given(desired_replicas, observed_replicas)
def test_the_result_is_what_was_desired(desired: p.DesiredReplica, observed: p.ObservedReplica) -> None:
    after = run(p.plan(desired, observed), observed)
    if not desired.present:
        assert after == p.NOTHING
        return
    if p.is_lost(desired, observed):
        assert after.lvol == observed.lvol, "an empty lvol must not take the place of a lost one"
        assert after.subsystem is None or not after.subsystem.hosts
        return
    assert after.lvol is not None
    assert after.subsystem is not None
    assert after.lvol.size_bytes == max(desired.size_bytes, observed.lvol.size_bytes if observed.lvol else 0)
    if after.subsystem.namespace:
        assert after.lvol.qos == desired.qos
    assert after.subsystem.hosts == desired.hosts
    assert after.subsystem.listeners <= {HERE}
    assert after.subsystem.namespace in ("", after.lvol.uuid)
    if desired.hosts:
        assert after.subsystem == p.SubsystemSeen(desired.hosts, frozenset({HERE}), after.lvol.uuid)


@given(desired_replicas, observed_replicas)
def test_hosts_leave_before_hosts_enter(desired: p.DesiredReplica, observed: p.ObservedReplica) -> None:
    entered = False
    for actions in p.plan(desired, observed):
        if any(isinstance(action, p.RemoveHost) for action in actions):
            assert not entered
            assert not any(isinstance(action, p.AddHost) for action in actions)
        entered = entered or any(isinstance(action, p.AddHost) for action in actions)


@given(desired_replicas, observed_replicas)
def test_a_host_that_waits_to_reconnect_finds_its_namespace(
    desired: p.DesiredReplica, observed: p.ObservedReplica
) -> None:
    seen = observed
    for actions in p.plan(desired, observed):
        if observed.subsystem is None and any(isinstance(action, p.AddHost) for action in actions):
            assert seen.subsystem is not None
            assert seen.lvol is not None
            assert seen.subsystem.namespace == seen.lvol.uuid
        seen = run((actions,), seen)


@given(desired_replicas, observed_replicas)
def test_limits_are_set_once_the_lvol_is_open_and_before_a_host_is_let_in(
    desired: p.DesiredReplica, observed: p.ObservedReplica
) -> None:
    """SPDK refuses to change the limits of a bdev that nobody has opened; a namespace holds it open."""
    seen = observed
    for actions in p.plan(desired, observed):
        opened = seen.lvol is not None and seen.subsystem is not None and seen.subsystem.namespace == seen.lvol.uuid
        if any(isinstance(action, p.SetQos) for action in actions):
            assert opened
        before = run((tuple(each for each in actions if isinstance(each, p.SetQos)),), seen)
        if any(isinstance(action, p.AddHost) for action in actions) and before.lvol is not None:
            assert before.lvol.qos == desired.qos
        seen = run((actions,), seen)


@given(desired_replicas, observed_replicas)
def test_data_is_deleted_only_when_asked_and_never_under_a_host(
    desired: p.DesiredReplica, observed: p.ObservedReplica
) -> None:
    seen = observed
    for actions in p.plan(desired, observed):
        if any(isinstance(action, p.DeleteLvol) for action in actions):
            assert not desired.present
            assert seen.subsystem is None or not seen.subsystem.hosts
        seen = run((actions,), seen)


def test_creating_is_one_round_and_publishing_the_next() -> None:
    created = p.DesiredReplica("vol-1", "quarry-d", "nqn.v", "Q1", True, 1 << 20, True, frozenset(), HERE)
    first = p.plan(created, p.NOTHING)
    assert first == ((p.CreateLvol("quarry-d", "vol-1", 1 << 20, True), p.CreateSubsystem("nqn.v", "Q1")),)
    published = replace(created, hosts=frozenset({"nqn.a"}))
    assert p.plan(published, run(first, p.NOTHING)) == (
        (p.AddNamespace("nqn.v", "quarry-d/vol-1"), p.AddListener("nqn.v", HERE), p.AddHost("nqn.v", "nqn.a")),
    )


def test_limits_of_a_volume_that_is_served_without_a_namespace() -> None:
    """The first limits can be set on a closed bdev, changes have to wait until it is open."""
    shut = p.DesiredReplica(
        "vol-1", "quarry-d", "nqn.v", "Q1", True, 1 << 20, True, frozenset(), HERE, Qos(rw_iops=1000), exported=False
    )
    seen = run(p.plan(shut, p.NOTHING), p.NOTHING)
    assert seen == p.ObservedReplica(p.LvolSeen(UUID, 1 << 20))
    published = replace(shut, hosts=frozenset({"nqn.a"}))
    assert p.plan(published, seen) == ((p.SetQos("quarry-d/vol-1", Qos(rw_iops=1000)),),)
    seen = run(p.plan(published, seen), seen)
    changed = replace(published, qos=Qos(rw_iops=2000))
    assert p.plan(changed, seen) == ()
    assert p.plan(replace(changed, opened=True), seen) == ((p.SetQos("quarry-d/vol-1", Qos(rw_iops=2000)),),)


def test_limits_come_with_the_namespace_and_are_changed_in_one_round() -> None:
    limits = Qos(rw_iops=1000)
    created = p.DesiredReplica("vol-1", "quarry-d", "nqn.v", "Q1", True, 1 << 20, True, frozenset(), HERE, limits)
    seen = run(p.plan(created, p.NOTHING), p.NOTHING)
    assert p.plan(replace(created, qos=Qos(rw_iops=2000)), seen) == (), "nobody has opened it"
    published = replace(created, hosts=frozenset({"nqn.a"}))
    rounds = p.plan(published, seen)
    assert rounds == (
        (p.AddNamespace("nqn.v", "quarry-d/vol-1"), p.AddListener("nqn.v", HERE)),
        (p.SetQos("quarry-d/vol-1", limits), p.AddHost("nqn.v", "nqn.a")),
    )
    seen, unlimited = run(rounds, seen), replace(published, qos=Qos())
    assert p.plan(unlimited, seen) == ((p.SetQos("quarry-d/vol-1", Qos()),),)
    withdrawn = replace(unlimited, hosts=frozenset())
    assert p.plan(withdrawn, seen) == ((p.RemoveHost("nqn.v", "nqn.a"),), (p.SetQos("quarry-d/vol-1", Qos()),))

"""The families of metrics, made from the agent's counters and the facts of one look. Pure; runs in a thread."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from agent import __version__
from agent.diag.parts import Parts
from agent.diag.readings import Reading, VolumeIo
from agent.model import ConditionStatus, Disk, Snapshot, TargetState, Volume
from agent.pools.disk_conditions import HEALTH, failing, power_loss
from agent.pools.ledger import Ledger
from agent.tally import Key, Tally
from agent.tasks.failures import FAILURES

if TYPE_CHECKING:
    from agent.spdk.client import Client
    from agent.volumes.target.bringup import TargetKeeper


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read for one scrape."""

    disks: Sequence[Disk] = ()
    volumes: Sequence[Volume] = ()
    snapshots: Sequence[Snapshot] = ()
    abnormal: int = 0
    io: Reading = field(default_factory=Reading)
    ready: bool = False
    store_answers: bool = True
    dead_nodes: Mapping[str, bool] = field(default_factory=dict)


def of(parts: Parts, facts: Facts) -> list[Metric]:
    """All families. What the role has no part for, or the store does not tell now, is left out."""
    made = [*_agent(parts, facts), *_csi(parts.calls)]
    if parts.rpc is not None:
        made += _spdk(parts.rpc)
    if parts.keeper is not None:
        made += _target(parts.keeper)
    if facts.store_answers:
        made += [*_disks(facts.disks), *_volumes(facts), _nodes(facts.dead_nodes)]
        if parts.ledger is not None:
            made += _pools(facts.disks, parts.ledger)
        if parts.rpc is not None:
            made += _io(facts.io)
    return made


def health_of(disk: Disk) -> str:
    """One word: Failing when its I/O fails or it says so, else what it said last, else Unknown."""
    if failing(disk) is not None:
        return "Failing"
    return next((each.reason for each in disk.status.conditions if each.type == HEALTH and each.reason), "Unknown")


def _agent(parts: Parts, facts: Facts) -> Iterator[Metric]:
    info = GaugeMetricFamily("quarry_build_info", "1, with what runs.", labels=["version", "role", "node"])
    info.add_metric([__version__, parts.role, parts.node], 1)
    yield info
    yield GaugeMetricFamily("quarry_ready", "1 when /readyz says so.", facts.ready)
    yield GaugeMetricFamily("quarry_store_up", "1 when the store answered this scrape.", facts.store_answers)
    writes = CounterMetricFamily("quarry_store_writes", "Writes to the store.", labels=["kind", "operation"])
    for (kind, operation), count in sorted(dict(parts.store_writes).items()):
        writes.add_metric([kind, operation.lower()], count)
    yield writes
    failures = CounterMetricFamily(
        "quarry_background_failures",
        "Times that work in the background failed or ended; it is begun again after a pause, as the log says.",
        labels=["task"],
    )
    for task, count in sorted(dict(FAILURES.counts).items()):
        failures.add_metric([task], count)
    yield failures
    requests = CounterMetricFamily(
        "quarry_kubernetes_requests", "Requests sent to the Kubernetes API.", labels=["kind", "verb"]
    )
    for key, count in sorted(dict(parts.store_requests).items()):
        requests.add_metric(key, count)
    yield requests


def _nodes(dead: Mapping[str, bool]) -> Metric:
    alive = GaugeMetricFamily(
        "quarry_node_alive",
        "1 while the node's agent gives signs of life, 0 when it is called dead; only of the controller that leads.",
        labels=["node"],
    )
    for name, is_dead in sorted(dead.items()):
        alive.add_metric([name], not is_dead)
    return alive


def _csi(calls: Tally) -> Iterator[Metric]:
    by_code = CounterMetricFamily("quarry_csi_calls", "CSI calls answered.", labels=["method", "code"])
    by_method: dict[str, list[tuple[Sequence[int], float]]] = defaultdict(list)
    for (method, code), series in sorted(dict(calls.series).items()):
        by_code.add_metric([method, code], series.total)
        by_method[method].append((series.counts, series.seconds))
    yield by_code
    seconds = HistogramMetricFamily("quarry_csi_call_duration_seconds", "Time CSI calls took.", labels=["method"])
    for method, parts in by_method.items():
        counts = [sum(column) for column in zip(*(counts for counts, _ in parts), strict=True)]
        seconds.add_metric([method], *_buckets(calls, counts, sum(each for _, each in parts)))
    yield seconds


def _spdk(rpc: Client) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "quarry_spdk_call_duration_seconds", "Time calls to the target took, answered or not.", labels=["method"]
    )
    for key, series in sorted(dict(rpc.durations.series).items()):
        seconds.add_metric(key, *_buckets(rpc.durations, series.counts, series.seconds))
    yield seconds
    errors = CounterMetricFamily(
        "quarry_spdk_call_errors",
        "Calls to the target that ended in an error: its code, timeout or connection. Absent is an error to SPDK.",
        labels=["method", "code"],
    )
    for key, count in sorted(dict(rpc.errors).items()):
        errors.add_metric(key, count)
    yield errors
    yield CounterMetricFamily("quarry_target_connections", "Connections made to the target.", rpc.generation)


def _target(keeper: TargetKeeper) -> Iterator[Metric]:
    state = GaugeMetricFamily("quarry_target_state", "1 for the state the target is in.", labels=["state"])
    for each in TargetState:
        state.add_metric([each.value], keeper.state is each)
    yield state
    info = GaugeMetricFamily("quarry_target_info", "1, with what the target is.", labels=["version", "program", "mode"])
    if keeper.nature is not None:
        info.add_metric([keeper.nature.version, keeper.nature.program, keeper.nature.mode], 1)
    yield info
    yield CounterMetricFamily(
        "quarry_target_rebuilds", "Times the target was brought up: at start and after each restart.", keeper.recoveries
    )
    if (last := keeper.last_recovery) is not None:
        yield GaugeMetricFamily("quarry_target_last_rebuild_seconds", "Time the last one took.", last.seconds)
        yield GaugeMetricFamily(
            "quarry_target_last_rebuild_failed_volumes", "Volumes it could not serve at once.", last.failed
        )


def _disks(disks: Sequence[Disk]) -> Iterator[Metric]:
    family = GaugeMetricFamily("quarry_disks", "Disks known.", labels=["tier", "phase", "health"])
    for key, count in _counted([(each.tier, each.status.phase, health_of(each)) for each in disks]):
        family.add_metric(key, count)
    yield family
    safe = GaugeMetricFamily(
        "quarry_disk_power_loss_safe",
        "1 when a disk in service keeps nothing back that was synced (or is protected), else 0. Files are left out.",
        labels=["disk", "reason"],
    )
    for disk in disks:
        if (told := power_loss(disk)) is not None:
            safe.add_metric([disk.meta.name, told.reason], told.status is ConditionStatus.TRUE)
    yield safe


def _pools(disks: Sequence[Disk], ledger: Ledger) -> Iterator[Metric]:
    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"quarry_pool_{name}_bytes", text, labels=["disk", "tier"])

    size, taken = family("size", "Size of the pool."), family("allocated", "Bytes of the pool that are taken.")
    promised = family(
        "reserved", "Bytes promised to volumes: thick ones in full, thin ones by the overprovision ratio."
    )
    for disk in disks:
        pool = ledger.pool(disk.meta.name)
        if pool is not None:
            key = [disk.meta.name, pool.tier.value]
            size.add_metric(key, pool.size_bytes)
            taken.add_metric(key, pool.size_bytes - pool.free_bytes)
            promised.add_metric(key, pool.promised_bytes)
    yield from (size, taken, promised)


def _volumes(facts: Facts) -> Iterator[Metric]:
    volumes = facts.volumes
    phases = GaugeMetricFamily("quarry_volumes", "Volumes.", labels=["tier", "phase"])
    for key, count in _counted([(each.spec.tier, each.status.phase) for each in volumes]):
        phases.add_metric(key, count)
    yield phases
    yield GaugeMetricFamily("quarry_volumes_abnormal", "Volumes whose condition is abnormal.", facts.abnormal)
    attached = sum(bool(each.spec.attachments) for each in volumes)
    yield GaugeMetricFamily("quarry_volumes_published", "Volumes that some node may use.", attached)
    sizes: Counter[Key] = Counter()
    for each in volumes:
        sizes[each.spec.tier, each.spec.provisioning] += each.spec.size_bytes
    provisioned = GaugeMetricFamily(
        "quarry_provisioned_bytes", "Sizes of all volumes together.", labels=["tier", "provisioning"]
    )
    for key, total in sorted(sizes.items()):
        provisioned.add_metric(key, total)
    yield provisioned
    snapshots = GaugeMetricFamily("quarry_snapshots", "Snapshots.", labels=["phase"])
    for key, count in _counted([(each.status.phase,) for each in facts.snapshots]):
        snapshots.add_metric(key, count)
    yield snapshots


def _io(reading: Reading) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "quarry_volume_io_omitted", "Published volumes whose I/O counters are not in this scrape.", reading.omitted
    )
    info = GaugeMetricFamily(
        "quarry_volume_info", "1 for each volume with I/O counters.", labels=["volume", "csi_name", "tier", "disk"]
    )
    for each in reading.volumes:
        spec = each.volume.spec
        disk = spec.placement[0].disk if spec.placement else ""
        info.add_metric([each.volume.meta.name, spec.csi_name, spec.tier, disk], 1)
    yield info
    for name, text, value in _COUNTERS:
        family = CounterMetricFamily(f"quarry_volume_{name}", text, labels=["volume"])
        for each in reading.volumes:
            family.add_metric([each.volume.meta.name], value(each))
        yield family


_COUNTERS: Sequence[tuple[str, str, Callable[[VolumeIo], float]]] = (
    ("read_bytes", "Bytes read.", lambda io: io.stat.bytes_read),
    ("written_bytes", "Bytes written.", lambda io: io.stat.bytes_written),
    ("reads", "Reads.", lambda io: io.stat.num_read_ops),
    ("writes", "Writes.", lambda io: io.stat.num_write_ops),
    ("read_seconds", "Time reads took, summed.", lambda io: io.seconds(io.stat.read_latency_ticks)),
    ("write_seconds", "Time writes took, summed.", lambda io: io.seconds(io.stat.write_latency_ticks)),
    ("io_errors", "Operations that failed.", lambda io: sum(io.stat.io_error.values())),
)


def _buckets(tally: Tally, counts: Sequence[int], seconds: float) -> tuple[list[tuple[str, float]], float]:
    bounds = [*(str(bound) for bound in tally.bounds_s), "+Inf"]
    return [(bound, float(sum_)) for bound, sum_ in zip(bounds, accumulate(counts), strict=True)], seconds


def _counted(keys: Sequence[Key]) -> Iterator[tuple[Key, int]]:
    return iter(sorted(Counter(keys).items()))

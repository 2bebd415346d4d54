"""`python -m tests.bench`: rates, latencies, growth and recovery beside their floors, in one run."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import msgspec
from rich.console import Console

from agent.csi.tuning import tune
from tests.bench.churn import QUICK as CHURN_QUICK
from tests.bench.churn import ChurnBench
from tests.bench.churn import Sizes as ChurnSizes
from tests.bench.churn_report import show as show_churn
from tests.bench.churn_results import Churn
from tests.bench.churn_results import verdicts as churn_verdicts
from tests.bench.cluster import MeasuredCluster
from tests.bench.idle import QUICK as IDLE_QUICK
from tests.bench.idle import Idle, IdleBench
from tests.bench.idle import Sizes as IdleSizes
from tests.bench.idle import verdicts as idle_verdicts
from tests.bench.report import show, show_idle
from tests.bench.results import Results, Verdict, verdicts
from tests.bench.run import QUICK, Bench, Sizes
from tests.bench.target import Target, find_real, find_sleeping, leave_a_cpu_to_the_target
from tests.kube.control_plane import missing

PARTS = ("standalone", "idle", "cluster")


@click.command()
@click.option("--target", "kind", type=click.Choice(["embedded", "real"]), help="Default: real where it is found.")
@click.option("--target-cpu", type=int, help="CPU the real target polls on [default: the last one].")
@click.option(
    "--part", "parts", type=click.Choice(PARTS), multiple=True, help="What to measure [default: all there is]."
)
@click.option("--quick", is_flag=True, help="A minute's smoke run; its numbers mean little.")
@click.option("--volumes", type=click.IntRange(min=20), help="Volumes to grow to [default: 2000].")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--check", is_flag=True, help="Exit with 1 when a limit is missed.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path), help="Where the sparse disk lies [default: a temporary one]."
)
def bench(
    kind: str | None,
    target_cpu: int | None,
    parts: tuple[str, ...],
    quick: bool,
    volumes: int | None,
    output: str,
    check: bool,
    work_dir: Path | None,
) -> None:
    """Measure the agent through its CSI socket, beside the floors of the same target and the same API server."""
    tune()  # the caller shares a CPU with the agent
    real = None if kind == "embedded" else find_real()
    if kind == "real" and real is None:
        raise click.UsageError("no spdk_tgt: set SPDK_TGT or put it on PATH")
    absent = missing()
    if "cluster" in parts and absent:
        raise click.UsageError(absent)
    notes = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="quarry-bench-", dir=work_dir))
    cpu = (os.cpu_count() or 1) - 1 if target_cpu is None else target_cpu
    if real is not None:
        leave_a_cpu_to_the_target(cpu)
    results, churn, idle = None, None, list[Idle]()
    idle_sizes = IDLE_QUICK if quick else IdleSizes()
    try:
        if "standalone" in (parts or PARTS):
            results = _standalone(
                folder, Target(folder, real, cpu), _sizes(QUICK if quick else Sizes(), volumes), notes
            )
        if "idle" in (parts or PARTS):
            idle = _idle(folder, real, cpu, idle_sizes, notes)
        if "cluster" in (parts or PARTS) and not absent:
            cluster = MeasuredCluster(folder, real, cpu)
            churn = _cluster(cluster, _crowd(CHURN_QUICK if quick else ChurnSizes(), volumes), notes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = _Found(results, churn, idle, idle_sizes)
    _print(found, output)
    if not parts and absent:
        notes.print(f"Cluster: not measured, {absent}", markup=False)
    if check and not all(verdict.passed for verdict in found.verdicts()):
        sys.exit(1)


def _sizes(sizes: Sizes, volumes: int | None) -> Sizes:
    return sizes if volumes is None else replace(sizes, many=volumes, recovered=min(sizes.recovered, volumes // 2))


def _crowd(sizes: ChurnSizes, volumes: int | None) -> ChurnSizes:
    return sizes if volumes is None else replace(sizes, many=volumes, crowd=volumes)


def _standalone(folder: Path, target: Target, sizes: Sizes, notes: Console) -> Results:
    try:
        return asyncio.run(_measured(folder, target, sizes, _sayer(notes)))
    except BaseException:
        for name in ("agent.log", "target.log"):
            notes.print(f"--- end of {name}", *_tail(folder / name), sep="\n", markup=False)
        raise


def _cluster(cluster: MeasuredCluster, sizes: ChurnSizes, notes: Console) -> Churn:
    async def measured() -> Churn:
        try:
            return await ChurnBench(cluster, sizes, _sayer(notes)).run()
        except BaseException:
            for name, text in cluster.logs().items():
                notes.print(f"--- end of the log of {name}", text, sep="\n", markup=False)
            raise
        finally:
            await cluster.stop()

    return asyncio.run(measured())


def _sayer(notes: Console) -> Callable[[str], None]:
    return lambda text: notes.print(f"[dim]{text}[/]")


async def _measured(folder: Path, target: Target, sizes: Sizes, say: Callable[[str], None]) -> Results:
    return await Bench(folder, target, sizes, say).run()


@dataclass(frozen=True)
class _Found:
    results: Results | None
    churn: Churn | None
    idle: list[Idle]
    idle_sizes: IdleSizes

    def verdicts(self) -> list[Verdict]:
        return [
            *(verdicts(self.results) if self.results else ()),
            *idle_verdicts(self.idle, self.idle_sizes),
            *(churn_verdicts(self.churn) if self.churn else ()),
        ]


def _idle(folder: Path, real: str | None, cpu: int, sizes: IdleSizes, notes: Console) -> list[Idle]:
    """The target of the other parts, and beside a real one that which sleeps."""
    targets = {"idle": Target(folder / "idle", real, cpu)}
    sleeping = find_sleeping()
    if real is not None and sleeping is not None:
        targets["sleeping"] = Target(folder / "sleeping", sleeping, cpu, interrupt=True)
    else:
        notes.print("Idle in interrupt mode: not measured, no real nvmf_tgt (NVMF_TGT, beside SPDK_TGT, or PATH)")
    found = []
    for name, target in targets.items():
        (folder / name).mkdir()
        found.append(asyncio.run(IdleBench(folder / name, target, sizes, _sayer(notes)).run()))
    return found


def _print(found: _Found, output: str) -> None:
    results, churn = found.results, found.churn
    if output == "json":
        document = {**(asdict(results) if results else {}), "cluster": asdict(churn) if churn else None}
        document["idle"] = [asdict(each) for each in found.idle]
        document["verdicts"] = [asdict(verdict) for verdict in found.verdicts()]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    if results is not None:
        show(console, results)
    if found.idle:
        show_idle(console, found.idle, found.idle_sizes)
    if churn is not None:
        show_churn(console, churn)


def _tail(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-20:] if file.exists() else ["(empty)"]


if __name__ == "__main__":
    bench()

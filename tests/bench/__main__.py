"""`python -m tests.bench`: rates, latencies, growth and recovery beside their floors, in one run."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import click
import msgspec
from rich.console import Console

from agent.csi.tuning import tune
from tests.bench.report import show
from tests.bench.results import Results, verdicts
from tests.bench.run import QUICK, Bench, Sizes
from tests.bench.target import Target, find_real, leave_a_cpu_to_the_target


@click.command()
@click.option("--target", "kind", type=click.Choice(["embedded", "real"]), help="Default: real where it is found.")
@click.option("--target-cpu", type=int, help="CPU the real target polls on [default: the last one].")
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
    quick: bool,
    volumes: int | None,
    output: str,
    check: bool,
    work_dir: Path | None,
) -> None:
    """Measure the agent through its CSI socket, beside the floors of the same target."""
    tune()  # the caller shares a CPU with the agent
    real = find_real()
    if kind == "real" and real is None:
        raise click.UsageError("no spdk_tgt: set SPDK_TGT or put it on PATH")
    sizes = QUICK if quick else Sizes()
    if volumes is not None:
        sizes = replace(sizes, many=volumes, recovered=min(sizes.recovered, volumes // 2))
    notes = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="quarry-bench-", dir=work_dir))
    cpu = (os.cpu_count() or 1) - 1 if target_cpu is None else target_cpu
    target = Target(folder, None if kind == "embedded" else real, cpu)
    if target.real:
        leave_a_cpu_to_the_target(cpu)
    try:
        results = asyncio.run(_measured(folder, target, sizes, lambda text: notes.print(f"[dim]{text}[/]")))
    except BaseException:
        for name in ("agent.log", "target.log"):
            notes.print(f"--- end of {name}", *_tail(folder / name), sep="\n", markup=False)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _print(results, output)
    if check and not all(verdict.passed for verdict in verdicts(results)):
        sys.exit(1)


async def _measured(folder: Path, target: Target, sizes: Sizes, say: Callable[[str], None]) -> Results:
    return await Bench(folder, target, sizes, say).run()


def _print(results: Results, output: str) -> None:
    if output == "json":
        document = asdict(results) | {"verdicts": [asdict(verdict) for verdict in verdicts(results)]}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
        return
    show(Console(width=None if sys.stdout.isatty() else 140), results)


def _tail(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-20:] if file.exists() else ["(empty)"]


if __name__ == "__main__":
    bench()

"""What was measured in a cluster, for a person: tables and verdicts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.bench.churn_results import Churn, Lives, disagreement, verdicts
from tests.bench.raw import STEPS
from tests.bench.report import judge, pair, table


def show(console: Console, churn: Churn) -> None:
    own = " but the target's own one" if churn.target == "real" else ""
    console.print(
        f"\nCluster: one node ({churn.target} target), one controller, an API server and {churn.callers} callers, "
        f"all on the same {churn.cpus} CPUs{own}.\n"
    )
    console.print(_rates(churn))
    console.print(_requests(churn))
    console.print(_processes(churn))
    console.print(_crowd(churn))
    for lives in (churn.few, churn.many, churn.beside):
        if differs := disagreement(lives):
            console.print(f"{lives.count:,} lives: the API server counted more per life than the processes: {differs}")
    if churn.repeated:
        console.print(f"{churn.repeated} calls were answered that they be asked again.")
    judge(console, verdicts(churn))


def _runs(churn: Churn) -> dict[str, Lives]:
    many = f"{churn.many.count:,} lives"
    return {f"{churn.few.count} lives": churn.few, many: churn.many, "beside another node": churn.beside}


def _rates(churn: Churn) -> Table:
    runs = _runs(churn)
    made = table("Volume lives in a cluster", "", *runs)
    made.add_row("lives a second", *(f"{each.per_second:.1f}" for each in runs.values()))
    made.add_row("bare writes of a life, lives a second", *(f"{each:.1f}" for each in churn.floors))
    for step in STEPS:
        made.add_row(f"{step}, p50 / p99 ms", *(pair(each.calls[step]) for each in runs.values()))
    made.add_row("lives / bare writes", "", f"{churn.ratio:.2f}", "")
    return made


def _requests(churn: Churn) -> Table:
    """Who asks for what."""
    runs = _runs(churn)
    made = table("Requests to the API per life", "", *runs)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for title, lives in runs.items():
        for process in lives.processes:
            for what, count in process.requests.items():
                if not what.endswith(" Lease"):
                    rows.setdefault((process.name, what), {})[title] = count
    for (name, what), counts in sorted(rows.items()):
        made.add_row(f"{name}: {what}", *(f"{counts.get(title, 0.0):.2f}" for title in runs))
    made.add_row("all, as the API server counts", *(f"{each.requests_per_life:.2f}" for each in runs.values()))
    made.add_row("events of watches", *(f"{each.watch_events:.1f}" for each in runs.values()))
    made.add_row("bytes of watches", *(f"{each.watch_bytes:,}" for each in runs.values()))
    return made


def _processes(churn: Churn) -> Table:
    runs = _runs(churn)
    made = table("CPU per life and memory", "", *runs)
    for name in dict.fromkeys(each.name for lives in runs.values() for each in lives.processes):
        found = {title: each for title, lives in runs.items() for each in lives.processes if each.name == name}
        cpu = [f"{found[title].cpu_ms:.2f} ms" if title in found else "-" for title in runs]
        rss = [f"{found[title].rss_mib:.0f} MiB" if title in found else "-" for title in runs]
        made.add_row(f"{name}: CPU per life", *cpu)
        made.add_row(f"{name}: memory afterwards", *rss)
    return made


def _crowd(churn: Churn) -> Table:
    crowd = churn.crowd
    measures = list(next(iter(crowd.steps.values())).first)
    made = table(
        f"{crowd.volumes:,} volumes at the same time: per call, first tenth -> last tenth",
        "call",
        *measures,
        "memory MiB",
    )
    for step, each in crowd.steps.items():
        cells = [f"{each.first[what]:,.2f} -> {each.last[what]:,.2f}" for what in measures]
        made.add_row(step, *cells, " / ".join(f"{mib:.0f}" for mib in crowd.rss_mib[step].values()))
    return made

"""The results for a person: tables and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.idle import Idle, Sizes
from tests.bench.idle import verdicts as idle_verdicts
from tests.bench.raw import STEPS
from tests.bench.results import Growth, Latency, Results, Verdict, verdicts


def show(console: Console, results: Results) -> None:
    console.print(f"\nTarget: {results.target}, {results.version}. CPUs: {results.cpus}.\n")
    console.print(_rates(results))
    console.print(_latency(results))
    if results.growth is not None:
        console.print(_growth(results.growth))
    _rest(console, results)
    judge(console, verdicts(results))
    if results.target != "real":
        console.print("The limits are meant for a real SPDK target; here they are for information.")


def show_idle(console: Console, found: Sequence[Idle], sizes: Sizes) -> None:
    console.print(_idle(found))
    console.print(_used(found))
    judge(console, idle_verdicts(list(found), sizes))


def _idle(found: Sequence[Idle]) -> Table:
    made = table(
        "With nothing to do: CPU in percent of a core",
        *("target", "mode", "disk", "exported", "hosts", "bare", "target", "agent", "agent's calls/s"),
    )
    for each in found:
        made.add_row(
            *(each.target, each.mode, each.disk, str(each.volumes), str(each.hosts)),
            *(f"{each.bare_percent:.2f}", f"{each.target_percent:.2f}", f"{each.agent_percent:.2f}"),
            f"{each.calls_per_second:.2f}",
        )
    return made


def _used(found: Sequence[Idle]) -> Table:
    made = table(
        "One host, 4 KiB at random, from Python's own initiator",
        *("target", "mode", "depth", "operation", "per second", "median", "target's CPU"),
    )
    for each in found:
        for load in each.loads:
            made.add_row(
                *(each.target, each.mode, str(load.depth), load.operation, f"{load.per_second:,.0f}"),
                *(f"{load.median_us:,.0f} us", f"{load.target_percent:.1f} %"),
            )
    return made


def judge(console: Console, found: Sequence[Verdict]) -> None:
    """What was promised, and whether it was kept."""
    for verdict in found:
        word = "[green]pass[/]" if verdict.passed else "[red]FAIL[/]"
        console.print(f"{word}  {verdict.what} {verdict.limit:g}: {verdict.value:.2f}")


def table(title: str, *columns: str) -> Table:
    """An empty one; the first column is the rows' name."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    return made


def _rates(results: Results) -> Table:
    made = table(
        "Volumes created, published, unpublished and deleted per second",
        *(
            "callers",
            "CSI",
            "raw pipelined floor",
            "CSI / floor",
            "official client, call by call",
            "CPU per life: agent",
            "caller",
        ),
    )
    for rate in results.rates:
        official = f"{results.official_lives_per_second:.1f}" if rate.callers == 1 else "-"
        cpu = [f"{rate.agent_cpu_ms_per_life:.2f} ms", f"{rate.client_cpu_ms_per_life:.2f} ms"]
        made.add_row(str(rate.callers), f"{rate.agent:.1f}", f"{rate.floor:.1f}", f"{rate.ratio:.2f}", official, *cpu)
    return made


def pair(latency: Latency | None) -> str:
    """p50 / p99."""
    return f"{latency.p50:.2f} / {latency.p99:.2f}" if latency else "-"


def _latency(results: Results) -> Table:
    callers = [f"CSI, {rate.callers} callers" for rate in results.rates]
    made = table("Latency in milliseconds, p50 / p99", "call", *callers, "raw, 1 caller", "official, 1 caller")
    for step in STEPS:
        ours = [pair(rate.calls.get(step)) for rate in results.rates]
        made.add_row(step, *ours, pair(results.floor_steps.get(step)), pair(results.official.get(step)))
    for name, latency in results.queries.items():
        made.add_row(name, pair(latency))
    return made


def _growth(growth: Growth) -> Table:
    few, many = f"at {growth.few}", f"at {growth.many:,}"
    made = table(
        "Growth: p50 in milliseconds at one caller",
        *("call", f"CSI {few}", f"CSI {many}", "ratio", f"raw {few}", f"raw {many}", "ratio"),
    )
    ours, floor = growth.ratios(), growth.floor_ratios()
    for call in STEPS:
        made.add_row(
            *(call, f"{growth.agent_few[call].p50:.2f}", f"{growth.agent_many[call].p50:.2f}", f"{ours[call]:.2f}"),
            *(f"{growth.floor_few[call].p50:.2f}", f"{growth.floor_many[call].p50:.2f}", f"{floor[call]:.2f}"),
        )
    cpu_few, cpu_many = growth.agent_cpu_ms_few, growth.agent_cpu_ms_many
    ratio = cpu_many / cpu_few if cpu_few else 0.0
    made.add_row("agent CPU per life", f"{cpu_few:.2f}", f"{cpu_many:.2f}", f"{ratio:.2f}")
    return made


def _rest(console: Console, results: Results) -> None:
    if (found := results.recovery) is not None:
        console.print(
            f"Recovery of {found.volumes:,} exported volumes after kill -9: {found.agent_s:.2f} s from the target's "
            f"first answer; raw pipelined floor {found.floor_s:.2f} s (start of the target itself: "
            f"{found.target_start_s:.2f} s)."
        )
    if (usage := results.usage) is not None:
        console.print(
            f"Agent memory: {usage.rss_start_mib:.0f} MiB at start, {usage.rss_few_mib:.0f} with few volumes, "
            f"{usage.rss_many_mib:.0f} with many, {usage.rss_end_mib:.0f} after the recovery; "
            f"CPU when idle with many: {usage.idle_cpu_percent:.1f} %.\n"
        )

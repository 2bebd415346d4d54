"""What a run of the demo shows: live lines while it runs, then the table or the JSON document of its steps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table


@dataclass(slots=True)
class StepResult:
    """One step as it went. `calls` counts the SPDK calls it took, by method."""

    name: str
    title: str
    ok: bool = False
    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    detail: str = ""
    error: str = ""

    def document(self) -> dict[str, Any]:
        """The form for machines."""
        return {
            "name": self.name,
            "title": self.title,
            "ok": self.ok,
            "seconds": round(self.seconds, 6),
            "spdk_calls": dict(self.calls),
            "detail": self.detail,
            "error": self.error,
        }


class Reporter(Protocol):
    """Follows a run live. `progress` may be called from any thread."""

    def say(self, text: str) -> None: ...

    def begin(self, result: StepResult) -> None: ...

    def progress(self, text: str) -> None: ...

    def end(self, result: StepResult) -> None: ...


class PlainReporter:
    """One line per finished step, for pipes and logs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def say(self, text: str) -> None:
        self._write(text)

    def begin(self, result: StepResult) -> None:
        pass

    def progress(self, text: str) -> None:
        pass

    def end(self, result: StepResult) -> None:
        mark = "ok    " if result.ok else "FAILED"
        self._write(f"{mark} {result.name:<10} {_time(result):>9}  {result.detail or result.error or result.title}")


class LiveReporter:
    """A spinner on the running step, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._title = ""

    def say(self, text: str) -> None:
        self._console.print(escape(text))

    def begin(self, result: StepResult) -> None:
        self._title = result.title
        self._status = self._console.status(escape(result.title))
        self._status.start()

    def progress(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{escape(self._title)} [dim]{escape(text)}[/dim]")

    def end(self, result: StepResult) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        mark = "[green]✓[/green]" if result.ok else "[red]✗[/red]"
        what = result.detail or result.error
        self._console.print(f"{mark} {escape(result.title)} [cyan]{_time(result)}[/cyan] [dim]{escape(what)}[/dim]")


def reporter_for(output: str) -> Reporter:
    """The reporter that suits stdout; JSON owns stdout, so then the lines go to stderr."""
    if output == "json":
        return PlainReporter(lambda text: print(text, file=sys.stderr, flush=True))
    console = Console(highlight=False)
    if console.is_terminal:
        return LiveReporter(console)
    return PlainReporter(lambda text: print(text, flush=True))


def print_steps(results: list[StepResult]) -> None:
    """The table of the steps."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("step", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("SPDK calls", justify="right", no_wrap=True)
    table.add_column("which")
    for result in results:
        name = result.name if result.ok else f"[red]{result.name} (failed)[/red]"
        table.add_row(name, _time(result), str(result.calls.total()), escape(_methods(result.calls)))
    total = sum(result.seconds for result in results)
    calls = sum(result.calls.total() for result in results)
    table.add_row("[bold]all[/bold]", f"[bold]{total:.2f} s[/bold]", f"[bold]{calls}[/bold]", "")
    console.print()
    console.print(table)


def _methods(calls: Counter[str]) -> str:
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in calls.most_common())


def _time(result: StepResult) -> str:
    return f"{result.seconds * 1000:.0f} ms" if result.seconds < 1 else f"{result.seconds:.2f} s"

"""Tables and lists of facts for people: folded to a terminal's width, one line for each thing in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from agent.errors import visible

if TYPE_CHECKING:
    from rich.table import Table


def size(size_bytes: int) -> str:
    """Bytes for a person, three digits (four from 1000 to 1023)."""
    for unit, factor in (("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:{'.0f' if size_bytes >= 999.5 * factor else '.3g'}} {unit}"
    return f"{size_bytes} B"


def age(since: float) -> str:
    """How long ago a time (seconds since the epoch) was; `-` of none."""
    if not since:
        return "-"
    seconds = max(0, int(time.time() - since))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(at: float) -> str:
    """A time for a person: local, with how long ago it was."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(at))} ({age(at)} ago)" if at else "-"


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table without lines; columns in `right` are aligned to the right, cells are cut rather than folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(visible(cell), no_wrap=True, overflow="ellipsis") for cell in row))
    print_rich(table)


def print_facts(facts: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Names with one line or more each; without any: `-`."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, texts in facts:
        table.add_row(Text(visible(name)), Text("\n".join(map(visible, texts)) or "-"))
    print_rich(table)


def print_rich(table: Table) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # Into a pipe nothing is folded, so that a line stays a line, and nothing padded.
    console = Console(highlight=False, width=10_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))

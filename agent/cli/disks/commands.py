"""`quarry disks`: the disks of this machine, what is on them, and why one may or may not be claimed.

The commands of this module only read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.asking import Where
from agent.cli.disks import of_agent, recorded
from agent.cli.disks.binding import bind, is_meant, state_dir_option, unbind
from agent.cli.disks.claims import claim, release
from agent.cli.disks.forget import forget
from agent.cli.disks.locate import locate
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.cli.paths import PATH
from agent.cli.resources import asking_options
from agent.cli.tables import print_facts, print_rich, size
from agent.errors import FailedPrecondition, InvalidArgument, NotFound, visible

if TYPE_CHECKING:
    from agent.disks.health import Assessment, Measures
    from agent.disks.inventory import Change, Inventory, Known
    from agent.disks.source import Source
    from agent.disks.write_cache import WriteCache
    from agent.model import Disk

_RECORDING = click.option(
    "--recording",
    type=PATH,
    metavar="FILE",
    help="Look at what `quarry disks record` wrote, instead of at this machine.",
)


@click.group(short_help="Look at the disks of this machine, claim and release them.")
def disks() -> None:
    """Look at the disks of this machine: what they are, what is on them, why they can be claimed or not.

    Only claim and release change a disk. As root everything is seen; without, the content of disks stays unknown.
    """


disks.add_command(bind)
disks.add_command(unbind)
disks.add_command(locate)
disks.add_command(claim)
disks.add_command(release)
disks.add_command(forget)


@disks.command("list", short_help="List all disks with the reasons why not.")
@_RECORDING
@asking_options
def list_disks(recording: Path | None, where: Where, output: str) -> None:
    """List every whole block device, with all the reasons why it cannot be claimed.

    With --url or --node, and as `kubectl quarry`: the disks that the agent there knows of.
    """
    if not where.is_local and recording is None:
        of_agent.KIND.print_all(where, output, lambda disk: where.node in (None, disk["status"]["node"]))
        return
    state_dir = where.state_dir
    inventory = _scanned(_source(recording, state_dir))
    found = _with_records(_with_away(inventory, recording, state_dir), recording, state_dir)
    now = of_agent.told(state_dir) if recording is None else {}
    if output == "json":
        print_json([document(known) | recorded.document(disk) | _space(disk, now) for known, disk in found])
    else:
        more = {"STATE": [recorded.state(disk) for _, disk in found]}
        if now:
            more["TAKEN"] = [of_agent.taken(now.get(disk.meta.name) if disk else None) for _, disk in found]
        print_disks([known for known, _ in found], more if any(disk for _, disk in found) else None)
    _print_unseen(inventory)


@disks.command(short_help="Show all that is known of one disk.")
@click.argument("disk")
@_RECORDING
@asking_options
def show(disk: str, recording: Path | None, where: Where, output: str) -> None:
    """Show all that is known of one DISK: its identity, name (sda), path in /dev (any link to it) or serial number."""
    if not where.is_local and recording is None:
        of_agent.KIND.print_one(where, disk, output)
        return
    state_dir = where.state_dir
    inventory = _scanned(_source(recording, state_dir))
    found = _with_records(_with_away(inventory, recording, state_dir), recording, state_dir)
    known, kept = _find(disk, found)
    told, shown = _health(known, state_dir) if recording is None and known.name != "-" else ({}, [])
    now = of_agent.told(state_dir) if recording is None and kept is not None else {}
    if output == "json":
        print_json(document(known) | told | recorded.document(kept) | _space(kept, now))
    else:
        pool = of_agent.space_lines(now.get(kept.meta.name)) if kept is not None else ()
        print_facts([*_lines(known), *shown, *recorded.lines(kept), *pool])
    _print_unseen(inventory)


@disks.command(short_help="Follow disks as they come, change and go.")
@_RECORDING
@state_dir_option
@output_option
@log_options("warning")
def watch(recording: Path | None, state_dir: Path, output: str, **logging: str | None) -> None:
    """List all disks, then a line for each that comes, changes or goes, until Ctrl-C. JSON: one document a line."""
    configure_logs(logging["log_level"], logging["log_format"])
    import asyncio

    from agent.disks.inventory import Inventory
    from agent.disks.watch import Watch

    async def follow() -> None:
        inventory = Inventory(source)
        await Watch(source, inventory).run(_print_changes_json if output == "json" else _print_changes)

    source = _source(recording, state_dir)
    try:
        asyncio.run(follow())
    except* BrokenPipeError:  # `quarry disks watch | head`
        pass


@disks.command(short_help="Write down what this machine tells of its disks.")
@click.argument("file", type=PATH)
@log_options("warning")
def record(file: Path, **logging: str | None) -> None:
    """Write what this machine tells of its disks to a new FILE, to be looked at elsewhere with --recording.

    It holds models, serial numbers, mount points and kinds of content, but no data.
    """
    configure_logs(logging["log_level"], logging["log_format"])
    from agent.disks.machine import Machine
    from agent.disks.recording import Recorder, dump

    recorder = Recorder(Machine())
    inventory = _scanned(recorder)
    try:
        with file.open("xb") as opened:
            opened.write(dump(recorder.recording))
    except OSError as error:
        raise InvalidArgument("FILE", f"{file} cannot be written: {error.strerror}", "name a new file") from error
    click.echo(f"{len(inventory.known)} disks recorded in {file}")
    _print_unseen(inventory)


def _source(recording: Path | None, state_dir: Path) -> Source:
    if recording is None:
        from agent.disks.machine import Machine

        return Machine(volumes=lambda: recorded.volumes_shown(state_dir))
    from agent.disks.recording import Recorded, load

    try:
        return Recorded(load(recording.read_bytes()))
    except OSError as error:
        raise InvalidArgument("--recording", f"{recording}: {error.strerror}", "name a readable file") from error


def _scanned(source: Source) -> Inventory:
    import asyncio

    from agent.disks.inventory import Inventory

    async def scan() -> Inventory:
        inventory = Inventory(source)
        await inventory.scan()
        return inventory

    return asyncio.run(scan())


def _space(disk: Disk | None, now: of_agent.Documents) -> dict[str, Any]:
    """What the running agent knows of a disk's pool; nothing without one."""
    found = now.get(disk.meta.name) if disk is not None else None
    return {"space": found["space"]} if found is not None else {}


def _health(known: Known, state_dir: Path) -> tuple[dict[str, Any], list[tuple[str, list[str]]]]:
    """The disk's health for a program and for a person."""
    import asyncio

    import msgspec

    from agent.cli.disks.health import health_of, lines
    from agent.disks.write_cache import KernelCaches

    async def look() -> tuple[Assessment, Measures | None, WriteCache | None]:
        cache = None if known.status.bdev else await KernelCaches().look(known.name)
        return *await health_of(known, state_dir), cache

    assessment, measures, cache = asyncio.run(look())
    told = {"health": assessment.health.value, "health_reasons": list(assessment.reasons)}
    figures = msgspec.to_builtins(measures) if measures is not None else None
    shown = [("health", lines(assessment, measures)), *([("write cache", [cache.text])] if cache else [])]
    return told | {"health_measures": figures, "write_cache": cache.state.value if cache else None}, shown


def _with_away(inventory: Inventory, recording: Path | None, state_dir: Path) -> Mapping[str, Known]:
    """The disks that the kernel has, and those that the target drives itself; a recording has only the former."""
    if recording is not None:
        return inventory.known
    from agent.disks.binder import FOLDER, Binder, away

    try:
        gone = away(Binder(state_dir / FOLDER, inventory).bindings())
    except FailedPrecondition as error:
        click.echo(f"quarry: not seen: disks with a user-space driver: {error}", err=True)
        return inventory.known
    here = {known.identity for known in inventory.known.values()}
    return {**inventory.known, **{known.name: known for known in gone.values() if known.identity not in here}}


def _with_records(
    known: Mapping[str, Known], recording: Path | None, state_dir: Path
) -> list[tuple[Known, Disk | None]]:
    """In the order of their names, each with what the agent has on record of it."""
    disks = recorded.records(state_dir) if recording is None else []
    return sorted(recorded.joined(known, disks), key=lambda pair: _natural(pair[0].name))


def _find(wanted: str, known: Sequence[tuple[Known, Disk | None]]) -> tuple[Known, Disk | None]:
    """The disk that is meant. NotFound, or InvalidArgument when several are."""
    found = [pair for pair in known if is_meant(wanted, pair[0])]
    if not found:
        raise NotFound("disk", wanted)
    if len(found) > 1:
        names = ", ".join(each.name for each, _ in found)
        raise InvalidArgument("DISK", f"{wanted!r} fits {names}", "give one of these names")
    return found[0]


def document(known: Known) -> dict[str, Any]:
    """A disk as JSON: sizes in bytes; `name` is the kernel's of this moment, `id` what it keeps (null: nothing)."""
    import msgspec

    status = msgspec.to_builtins(known.status)
    codes = [reason.code.value for reason in known.reasons]
    mine = {"name": known.name, "id": known.identity or None, "same_identity_as": list(known.twins)}
    # Of a node and a pool nothing is known here: that is on record (agent.cli.disks.recorded).
    unused = ("node", "message", "pool", "conditions")
    return mine | {key: value for key, value in status.items() if key not in unused} | {"reason_codes": codes}


def print_disks(found: Sequence[Known], more: Mapping[str, Sequence[str]] | None = None) -> None:
    """The table of `list`. A terminal gets the reasons below the table, a pipe one line for each disk.

    `more`: what the agent has on record, by column, in the order of the disks.
    """
    from rich.table import Table
    from rich.text import Text

    from agent.model import DiskDriver

    if not found:
        click.echo("no disks")
        return
    piped = not sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    # In a narrow window identity and model give way, nothing else.
    name_width = max(len(known.name) for known in found)
    transport_width = 16 if any(known.status.driver is not DiskDriver.KERNEL for known in found) else 12
    for title, width in (("NAME", max(4, name_width)), ("TIER", 4), ("TRANSPORT", transport_width), ("SIZE", 8)):
        table.add_column(title, width=width, justify="right" if title == "SIZE" else "left")
    for title in more or ():
        table.add_column(title, width=10 if title == "STATE" else 6, justify="right" if title == "TAKEN" else "left")
    for title in ("ID", "MODEL", "CLAIMABLE") if piped else ("CLAIMABLE", "ID", "MODEL"):
        table.add_column(title, width=None if piped or title != "CLAIMABLE" else 9)
    for index, known in enumerate(found):
        status = known.status
        driver = "" if status.driver is DiskDriver.KERNEL else f" ({status.driver})"
        cells = [known.name, status.tier.value, status.transport + driver, size(status.size_bytes)]
        cells += [column[index] for column in (more or {}).values()]
        verdict, who = "yes" if status.eligible else "no", [known.identity or "-", status.model or "-"]
        if piped:
            cells += [*who, ": ".join((verdict, *filter(None, ["; ".join(status.reasons)])))]
        else:
            cells += [verdict, *who]
        table.add_row(*(Text(visible(cell), no_wrap=True, overflow="ellipsis") for cell in cells))
    print_rich(table)
    refused = [(known.name, known.status.reasons) for known in found if known.reasons]
    if refused and not piped:
        click.echo()
        print_facts(refused)


def _lines(known: Known) -> Iterable[tuple[str, Iterable[str]]]:
    status = known.status
    spins = {True: "yes", False: "no", None: "not known"}[status.rotational]
    yield "name", [known.name]
    yield "id", [known.identity or "none"]
    yield "claimable", ["yes"] if status.eligible else [f"no: {reason}" for reason in status.reasons]
    yield "tier", [status.tier.value]
    yield "transport", [status.transport]
    yield "driver", [f"{status.driver}, {status.message}" if status.bdev else status.driver]
    yield "model", [status.model or "-"]
    yield "serial", [status.serial or "-"]
    yield "wwid", [status.wwid or "-"]
    yield "firmware", [status.firmware or "-"]
    yield "size", [f"{size(status.size_bytes)} ({status.size_bytes} bytes)"]
    yield "blocks", [f"{status.block_bytes} bytes, physical {status.physical_block_bytes}"]
    yield "rotating", [spins]
    yield "PCI", status.pci_addresses
    yield "NUMA node", ["-" if status.numa_node is None else str(status.numa_node)]
    yield "path", [status.path, *status.links]
    yield "partitions", status.partitions
    yield "used by", status.holders
    yield "mounted at", status.mount_points
    yield "content", status.signatures or (["nothing"] if status.eligible else [])


def _print_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        known, status = change.known, change.known.status
        verdict = "claimable" if status.eligible else "; ".join(status.reasons)
        what = f"{known.name}  {status.tier}  {size(status.size_bytes)}  {known.identity or '-'}"
        click.echo(f"{change.kind:<7}  {what}" + ("" if change.kind == "removed" else f"  {verdict}"))
    sys.stdout.flush()


def _print_changes_json(changes: Sequence[Change]) -> None:
    import json

    for change in changes:
        click.echo(json.dumps({"change": change.kind.value, "disk": document(change.known)}))
    sys.stdout.flush()


def _print_unseen(inventory: Inventory) -> None:
    """What this look at the machine could not include, on stderr: the result is right, but not whole."""
    denied = [known.name for known in inventory.known.values() if known.denied]
    missing = list(inventory.unseen)
    if denied:
        missing.insert(0, f"what is on {len(denied)} disk{'s' * (len(denied) > 1)}")
    if missing:
        click.echo(f"quarry: not seen: {', '.join(missing)} (run this as root)", err=True)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    import re

    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part)

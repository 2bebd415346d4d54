"""`quarry disks bind` and `unbind`: an NVMe disk goes from the kernel's driver to the target's own, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.output import configure_logs, log_options, output_option, print_json, print_table
from agent.cli.paths import PATH
from agent.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from agent.disks.binder import Binder
    from agent.disks.binding import Binding, Step
    from agent.disks.inventory import Inventory, Known

F = TypeVar("F", bound=Callable[..., Any])

state_dir_option = click.option(
    "--state-dir",
    type=PATH,
    default=Path("/var/lib/quarry"),
    show_default=True,
    metavar="DIR",
    help="State folder of the agent.",
)


def _common(command: F) -> F:
    dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
    yes = click.option("--yes", is_flag=True, help="Do not ask.")
    argument = click.argument("disk")
    return argument(dry_run(yes(state_dir_option(output_option(log_options("warning")(command))))))


@click.command(short_help="Give an NVMe disk to the target's own driver.")
@click.option(
    "--driver",
    type=click.Choice(["vfio-pci", "uio_pci_generic"]),
    default="vfio-pci",
    show_default=True,
    help="The kernel's driver that lets a program drive the disk; uio is for machines without an IOMMU.",
)
@_common
def bind(disk: str, driver: str, dry_run: bool, yes: bool, state_dir: Path, output: str, **logging: str | None) -> None:
    """Take DISK (a name like nvme0n1, a path, an identity or a serial number) from the kernel, for the target.

    The whole controller goes, with all its namespaces; they are no block devices of the kernel any more. Refused
    unless each of them could be claimed. Nothing is written to the disks. After a reboot the agent binds them again.
    """
    configure_logs(logging["log_level"], logging["log_format"])
    from agent.disks.binding import Driver

    async def work() -> tuple[Binding, Sequence[Step]]:
        binder, inventory = await _ready(state_dir)
        known = _found(disk, inventory)
        binding, steps = await binder.plan(known, Driver(driver))
        if not dry_run:
            names = ", ".join(f"{each.status.path} ({each.identity})" for each in binding.disks)
            _ask(f"Take {names} from the kernel?", yes)
            binding = await binder.bind(known, Driver(driver))
        return binding, steps

    binding, steps = _run(work)
    _print(binding, steps, dry_run, output)


@click.command(short_help="Give an NVMe disk back to the kernel.")
@_common
def unbind(disk: str, dry_run: bool, yes: bool, state_dir: Path, output: str, **logging: str | None) -> None:
    """Give DISK (as `quarry disks list` names it, a PCI address, identity or serial number) back to the kernel.

    Refused while a program drives it: release its disks, or stop the target.
    """
    configure_logs(logging["log_level"], logging["log_format"])

    async def work() -> tuple[Binding, Sequence[Step], Sequence[str]]:
        from agent.disks.binder import as_known

        binder, _ = await _ready(state_dir, scan=False)
        meant = [
            each
            for each in binder.bindings()
            if disk == each.address or any(is_meant(disk, known) for known in as_known(each))
        ]
        if len(meant) != 1:
            raise NotFound("disk with a user-space driver", disk)
        steps, names = binder.plan_return(meant[0]), tuple[str, ...]()
        if not dry_run:
            _ask(f"Give {meant[0].address} back to the kernel?", yes)
            names = await binder.unbind(meant[0])
        return meant[0], steps, names

    binding, steps, names = _run(work)
    if output == "table" and not dry_run:
        click.echo(f"{binding.address} is with the kernel again: {', '.join(names) or 'without namespaces'}")
        return
    _print(binding, steps, dry_run, output, names)


def is_meant(wanted: str, known: Known) -> bool:
    """Whether a person means this disk: by name, identity, path, serial number or any link in /dev."""
    status = known.status
    names = {known.name, known.identity, status.path, status.serial, status.wwid, *status.links} - {""}
    return wanted in names or (wanted.startswith("/dev/") and str(Path(wanted).resolve()) == status.path)


async def _ready(state_dir: Path, scan: bool = True) -> tuple[Binder, Inventory]:
    from agent.disks.binder import FOLDER, Binder
    from agent.disks.inventory import Inventory
    from agent.disks.machine import Machine

    inventory = Inventory(Machine())
    if scan:
        await inventory.scan()
    return Binder(state_dir / FOLDER, inventory), inventory


def _found(wanted: str, inventory: Inventory) -> Known:
    found = [known for known in inventory.known.values() if is_meant(wanted, known)]
    if not found:
        raise NotFound("disk", wanted)
    # Namespaces of one controller share its serial number: any of them means the controller.
    if len({known.status.pci_addresses for known in found}) > 1:
        names = ", ".join(each.name for each in found)
        raise InvalidArgument("DISK", f"{wanted!r} fits {names}", "give one of these names")
    return found[0]


def _ask(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


def _run(work: Callable[[], Any]) -> Any:
    import asyncio

    return asyncio.run(work())


def _print(binding: Binding, steps: Sequence[Step], dry_run: bool, output: str, names: Sequence[str] = ()) -> None:
    if output == "json":
        print_json(document(binding, steps, dry_run, names))
        return
    if dry_run:
        for number, step in enumerate(steps, 1):
            click.echo(f"{number}. {step}")
        return
    rows = [[binding.shown_as(disk), disk.status.path, disk.identity, binding.driver.value] for disk in binding.disks]
    print_table(["NAME", "WAS", "ID", "DRIVER"], rows)


def document(binding: Binding, steps: Sequence[Step], dry_run: bool, names: Sequence[str]) -> dict[str, Any]:
    """A controller's move as JSON; `done` is false of one that is only planned."""
    return {
        "controller": binding.name,
        "pci_address": binding.address,
        "driver": binding.driver.value,
        "done": not dry_run,
        "disks": [
            {"id": disk.identity, "name": binding.shown_as(disk), "was": disk.status.path, "nsid": disk.nsid}
            for disk in binding.disks
        ],
        "steps": [
            {"action": step.action.value, "pci_address": step.address, "value": step.value, "text": str(step)}
            for step in steps
        ],
        "kernel_names": list(names),
    }

"""`quarry disks claim` and `release`: the wish goes to the store of the agent on this machine, which carries it out."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.disks.binding import is_meant, state_dir_option
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from agent.disks.inventory import Known
    from agent.model import Disk
    from agent.pools.claiming import Claiming

F = TypeVar("F", bound=Callable[..., Any])
_DISKS = click.argument("names", metavar="DISK...", nargs=-1, required=True)


timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the agent.",
)


def _common(command: F) -> F:
    return _DISKS(state_dir_option(timeout_option(output_option(log_options("warning")(command)))))


@click.command(short_help="Make pools of disks.")
@click.option("--tier", type=click.Choice(["nvme", "ssd", "hdd"]), help="Tier to serve instead of the disk's own.")
@click.option(
    "--driver",
    type=click.Choice(["kernel", "userspace"]),
    help="Who is to drive an NVMe disk: the kernel, or the target itself (by vfio-pci).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_common
def claim(
    names: Sequence[str],
    state_dir: Path,
    timeout_s: float,
    output: str,
    tier: str | None,
    driver: str | None,
    yes: bool,
    **logging: str | None,
) -> None:
    """Make a pool of each DISK (a name like sdb, a path or link in /dev, an identity or a serial number).

    Only blank disks are taken, and disks that carry their own pool, which is imported. A disk that is refused is left
    as it is.
    """
    configure_logs(logging["log_level"], logging["log_format"])

    async def work(claiming: Claiming) -> list[Disk]:
        from agent.model import DiskDriver, Tier

        wanted = (Tier(tier) if tier else None, DiskDriver(driver) if driver else None)
        disks = [await _find(claiming, name) for name in names]
        for disk in disks:
            claiming.require_claimable(await _as_it_is_now(disk))
        if not yes:
            _ask(disks)
        return await _each(disks, lambda disk: claiming.claim(disk, *wanted))

    _print(_run(work, state_dir, timeout_s, output), output)


@click.command(short_help="Give disks back, blank.")
@_common
def release(names: Sequence[str], state_dir: Path, timeout_s: float, output: str, **logging: str | None) -> None:
    """Take the pool off each DISK, which is blank afterwards. Refused while volumes or snapshots live on it."""
    configure_logs(logging["log_level"], logging["log_format"])

    async def work(claiming: Claiming) -> list[Disk]:
        disks = [await _find(claiming, name) for name in names]
        for disk in disks:
            await claiming.require_empty(disk)
        return await _each(disks, claiming.release)

    _print(_run(work, state_dir, timeout_s, output), output)


def _run(
    work: Callable[[Claiming], Awaitable[list[Disk]]], state_dir: Path, timeout_s: float, output: str
) -> list[Disk]:
    import asyncio

    from agent.pools.claiming import Claiming
    from agent.store.local import open_local

    require_agent(state_dir)

    def report(disk: Disk) -> None:
        click.echo(f"{disk.status.path}  {disk.status.phase}", err=output == "json")

    async def run() -> list[Disk]:
        store = await open_local(state_dir / "quarry.db")
        try:
            return await work(Claiming(store, report, timeout_s))
        finally:
            await store.close()

    return asyncio.run(run())


def require_agent(state_dir: Path) -> None:
    """Raise Unavailable unless an agent runs there: it does what is wished."""
    from agent.host import locks

    if not locks.is_held(state_dir):
        raise Unavailable(f"no agent runs on {state_dir}: start `quarry standalone`, or give its --state-dir")


async def _find(claiming: Claiming, wanted: str) -> Disk:
    """The disk that is meant. FailedPrecondition with the reasons when the machine has it and the agent no record."""
    try:
        return await claiming.find(wanted)
    except NotFound:
        for known in await _of_this_machine(loop_devices=False):
            if is_meant(wanted, known) and known.reasons:
                reasons = "; ".join(reason.text for reason in known.reasons)
                raise FailedPrecondition(f"{known.status.path}: {reasons}") from None
        raise


async def _as_it_is_now(disk: Disk) -> Disk:
    """A disk that was refused, after another look: without udev nothing tells the agent that it was emptied."""
    if disk.status.eligible:
        return disk
    # A loop device has a record only where the agent counts them as disks.
    for known in await _of_this_machine(loop_devices=True):
        if known.identity == disk.meta.name:
            now = known.status
            return replace(disk, status=replace(disk.status, eligible=now.eligible, reasons=now.reasons))
    return disk


async def _of_this_machine(*, loop_devices: bool) -> Collection[Known]:
    from agent.disks.candidates import Candidates
    from agent.disks.eligibility import Policy
    from agent.disks.inventory import Inventory
    from agent.disks.machine import Machine

    source = Candidates(Machine(), loop_devices=True)
    inventory = Inventory(source, policy=Policy(loop_devices=loop_devices))
    await inventory.scan()
    return inventory.known.values()


async def _each(disks: Sequence[Disk], action: Callable[[Disk], Awaitable[Disk]]) -> list[Disk]:
    """All at once; what became of the others is known before the first error is raised."""
    import asyncio

    results = await asyncio.gather(*(action(disk) for disk in disks), return_exceptions=True)
    errors = [each for each in results if isinstance(each, BaseException)]
    if len(errors) > 1 and all(isinstance(each, FailedPrecondition) for each in errors):
        raise FailedPrecondition("; ".join(str(each) for each in errors))
    for error in errors:
        raise error
    return [each for each in results if not isinstance(each, BaseException)]


def _ask(disks: Sequence[Disk]) -> None:
    from agent.cli.tables import size

    if not sys.stdin.isatty():
        raise InvalidArgument("--yes", "is not given, and there is nobody to ask", "give it to claim without asking")
    for disk in disks:
        status = disk.status
        has = ", ".join(status.signatures) or "nothing on it"
        click.echo(f"{status.path}  {size(status.size_bytes)}  {status.model or '-'}  {disk.meta.name}  {has}")
    click.confirm("These disks become pools of Quarry. Go on?", abort=True)


def _print(disks: Sequence[Disk], output: str) -> None:
    if output == "json":
        print_json([_document(disk) for disk in disks])


def _document(disk: Disk) -> dict[str, Any]:
    return {
        "id": disk.meta.name,
        "path": disk.status.path,
        "claimed": disk.spec.claimed,
        "tier": disk.tier.value,
        "phase": disk.status.phase.value,
        "pool_bytes": disk.status.pool.size_bytes,
    }

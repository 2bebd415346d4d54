"""Binds and returns an NVMe controller and dies (SIGKILL) at each step, before it and after; then starts anew.

`python3 -m tests.lab.inside.dying FOLDER PCI_ADDRESS` prints one line of JSON for each death: what was found after it,
and what the next start made of it. One process for all, since a Python starts slowly here; what dies is forked.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.disks.binder import Binder
from agent.disks.binding import Driver
from agent.disks.inventory import Inventory
from agent.disks.machine import Machine
from agent.disks.pci import Pci
from agent.host.journal import Journal

STEPS = 5
"""Note, override, unbind, probe, note."""


class Death:
    """Counts what changes something; the `last` is done or, with `before`, not any more."""

    def __init__(self, last: int = 0, *, before: bool = False) -> None:
        self._last, self._before, self._count = last, before, 0

    @contextmanager
    def effect(self) -> Iterator[None]:
        self._count += 1
        if self._count == self._last and self._before:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if self._count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalPci(Pci):
    def __init__(self, death: Death) -> None:
        super().__init__()
        self._death = death

    def _write(self, path: str, text: str) -> None:
        with self._death.effect():
            super()._write(path, text)


class MortalJournal(Journal):
    def __init__(self, directory: Path, death: Death) -> None:
        super().__init__(directory)
        self._death = death

    async def write(self, key: str, note: dict[str, str]) -> None:
        with self._death.effect():
            await super().write(key, note)

    async def remove(self, key: str) -> None:
        with self._death.effect():
            await super().remove(key)


class OnlyNvme(Machine):
    def names(self) -> Sequence[str]:
        return [name for name in super().names() if name.startswith("nvme")]


class Moves:
    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.pci = Pci()

    async def process(self, death: Death) -> tuple[Binder, Inventory]:
        inventory = Inventory(OnlyNvme())
        await inventory.scan()
        binder = Binder(self.folder, inventory, MortalPci(death), journal=MortalJournal(self.folder, death))
        return binder, inventory

    async def bind(self, death: Death) -> None:
        binder, inventory = await self.process(death)
        known = next(each for each in inventory.known.values() if self.address in each.status.pci_addresses)
        await binder.bind(known, Driver.VFIO)

    async def give_back(self, death: Death) -> None:
        binder, _ = await self.process(death)
        await binder.unbind(binder.bindings()[0])

    async def recover(self, death: Death) -> None:
        binder, _ = await self.process(death)
        await binder.recover()

    def state(self) -> list[str]:
        """Driver, override, and what the note says."""
        function = self.pci.function(self.address)
        assert function is not None
        journal = Journal(self.folder)
        states = [json.loads((journal.read(key) or {}).get("binding", "{}")).get("state", "") for key in journal.keys()]  # noqa: SIM118
        return [function.driver, function.override, *states]


def in_a_process(work: Callable[[Death], Awaitable[None]], death: Death) -> int:
    """How it ended: 0, or the signal by which it died, negative."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(work(death))  # type: ignore[arg-type]
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the child's end: its parent must not go on twice
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, address: str) -> None:
    moves = Moves(folder, address)
    for name, move, start in (("bind", moves.bind, moves.give_back), ("return", moves.give_back, moves.bind)):
        bound = name == "return"
        for step in range(1, STEPS + 1):
            for before in (True, False):
                if (moves.pci.function(address) or sys.exit("gone")).driver != ("vfio-pci" if bound else "nvme"):
                    in_a_process(start, Death())
                died = in_a_process(move, Death(step, before=before))
                between = moves.state()
                recovered = in_a_process(moves.recover, Death())
                line = {"move": name, "step": step, "before": before, "died": died, "between": between}
                print(json.dumps(line | {"recovered": recovered, "after": moves.state()}), flush=True)
    if moves.state()[0] != "nvme":
        in_a_process(moves.give_back, Death())
    print(json.dumps({"end": moves.state()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

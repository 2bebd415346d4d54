"""What a target is: which program, whether it sleeps while there is nothing to do, and what it can therefore offer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from agent.spdk import app
from agent.spdk.client import Rpc


class Program(StrEnum):
    SPDK_TGT = "spdk_tgt"
    NVMF_TGT = "nvmf_tgt"
    EMBEDDED = "embedded target"
    OTHER = "another SPDK program"


class Mode(StrEnum):
    POLLING = "polling"
    """Each of its CPUs is busy all the time."""
    INTERRUPT = "interrupt"
    """It sleeps until something happens: started with --interrupt-mode."""


@dataclass(frozen=True, slots=True)
class Nature:
    """`version` as the target says itself."""

    version: str
    program: Program
    mode: Mode
    has_ublk: bool

    @property
    def is_embedded(self) -> bool:
        return self.program is Program.EMBEDDED

    @property
    def wakes_for_nothing(self) -> bool:
        """The iSCSI service of spdk_tgt polls in interrupt mode too: most of a core, with nothing configured."""
        return self.mode is Mode.INTERRUPT and self.program is Program.SPDK_TGT


async def learn(rpc: Rpc) -> Nature:
    """Ask the target what it is: its version, its methods (rpc_get_methods) and its CPUs (framework_get_reactors)."""
    version, methods, reactors = await asyncio.gather(app.version(rpc), app.methods(rpc), app.reactors(rpc))
    names = frozenset(methods)
    return Nature(
        version=version,
        program=_program(version, names),
        mode=Mode.INTERRUPT if reactors.sleeps else Mode.POLLING,
        has_ublk="ublk_start_disk" in names and "embedded" not in version,
    )


def _program(version: str, methods: frozenset[str]) -> Program:
    """A target does not tell its name; what tells programs apart is which services are linked into them."""
    if "embedded" in version:
        return Program.EMBEDDED
    if "nvmf_create_subsystem" not in methods:
        return Program.OTHER
    return Program.SPDK_TGT if "iscsi_create_portal_group" in methods else Program.NVMF_TGT

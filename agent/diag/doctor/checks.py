"""The list of all checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from agent.diag.doctor import agent_checks as running
from agent.diag.doctor import disk_checks as disks
from agent.diag.doctor import machine_checks as machine
from agent.diag.doctor.facts import Facts
from agent.diag.doctor.findings import Finding, Level


class Before(StrEnum):
    """What a check is to `--for node`, that is before the agent starts."""

    MUST = "must hold"
    MAY = "may be missing: the agent waits for it or does without, so it is a warning"
    NOT = "comes with the agent: not checked"


@dataclass(frozen=True, slots=True)
class Check:
    judge: Callable[[Facts], list[Finding]]
    before: Before


CHECKS: Sequence[Check] = (
    Check(machine.kernel, Before.MUST),
    Check(machine.cpu, Before.MUST),
    Check(machine.memory, Before.MUST),
    Check(machine.hugepages, Before.MAY),
    Check(machine.nvme_tcp, Before.MAY),
    Check(machine.ublk, Before.MAY),
    Check(machine.loop, Before.MAY),
    Check(machine.vfio, Before.MAY),
    Check(machine.udev, Before.MAY),
    Check(machine.programs, Before.MUST),
    Check(machine.clock, Before.MUST),
    Check(running.state_dir, Before.MUST),
    Check(running.host_identity, Before.MAY),
    Check(running.target, Before.MAY),
    Check(running.target_load, Before.MAY),
    Check(running.port, Before.MAY),
    Check(running.agent, Before.NOT),
    Check(disks.power_loss, Before.NOT),
    Check(running.kubelet, Before.NOT),
)


def examine(facts: Facts, *, before_agent: bool = False) -> list[Finding]:
    """Everything found. `before_agent`: only what must hold before the agent starts; the rest at most warns."""
    findings: list[Finding] = []
    for check in CHECKS:
        if before_agent and check.before is Before.NOT:
            continue
        found = check.judge(facts)
        if before_agent and check.before is Before.MAY:
            found = [replace(each, level=Level.WARN) if each.level is Level.FAIL else each for each in found]
        findings += found
    return findings

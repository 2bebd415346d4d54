"""Checks of the disks in service, as the agent tells of them. Pure."""

from __future__ import annotations

from agent.diag.doctor.facts import Facts
from agent.diag.doctor.findings import Finding, passed, warned

_SHOWN = 5


def power_loss(facts: Facts) -> list[Finding]:
    """Whether what was synced survives a power cut."""
    if not facts.disks:
        return []
    unsafe = [disk for disk in facts.disks if not disk.is_safe]
    if not unsafe:
        return [passed("write caches", f"off, absent or protected on {len(facts.disks)} disks in service")]
    text = "; ".join(f"{disk.path}: {disk.said}" for disk in unsafe[:_SHOWN])
    more = f"; and {len(unsafe) - _SHOWN} more" if len(unsafe) > _SHOWN else ""
    remedy = (
        "what was synced can be lost at a power cut: move the volumes to other disks, or, if the disk is protected "
        "against power loss, say so by a rule with `power_loss_protected: true` (docs/durability.md)"
    )
    return [warned("write caches", text + more, remedy)]

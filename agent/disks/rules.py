"""Which disks the rules of the configuration claim. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase

from agent.config.settings import DiskRule, DiskSettings
from agent.model import Disk


def claims(settings: DiskSettings, disk: Disk) -> bool:
    """Whether a rule claims `disk` and none excludes it. Whether it may be claimed is another question."""
    return any(fits(rule, disk) for rule in settings.claim) and not any(fits(rule, disk) for rule in settings.exclude)


def protects(settings: DiskSettings, disk: Disk) -> bool:
    """Whether a rule says that `disk` loses nothing at a power cut, whatever its write cache is."""
    rules = (*settings.claim, *settings.known)
    return any(rule.power_loss_protected and fits(rule, disk) for rule in rules)


def fits(rule: DiskRule, disk: Disk) -> bool:
    """Whether `disk` is all that `rule` asks for. Text is compared exactly, but for wildcards."""
    status = disk.status
    return (
        rule.tier in (None, disk.tier)
        and rule.transport in (None, status.transport)
        and (rule.model is None or fnmatchcase(status.model, rule.model))
        and (rule.path is None or any(fnmatchcase(path, rule.path) for path in (status.path, *status.links)))
        and (rule.min_size is None or status.size_bytes >= rule.min_size)
        and (rule.max_size is None or status.size_bytes <= rule.max_size)
    )

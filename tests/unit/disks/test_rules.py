"""Claim rules: all that a rule says has to fit, text with wildcards, sizes with both ends included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.config.settings import DiskRule, DiskSettings
from agent.disks import rules
from agent.model import Disk, DiskSpec, DiskStatus, Meta, Tier

TB = 10**12
DISK = Disk(
    Meta("wwn-5000c500a1b2c3d4"),
    status=DiskStatus(
        path="/dev/sdb",
        links=("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", "/dev/disk/by-path/pci-0000:3b:00.0-ata-2"),
        model="SAMSUNG MZ7L33T8",
        transport="sata",
        size_bytes=4 * TB,
        tier=Tier.SSD,
    ),
)


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({"tier": "ssd"}, True),
        ({"tier": "nvme"}, False),
        ({"transport": "sata"}, True),
        ({"transport": "sat"}, False),
        ({"model": "SAMSUNG *"}, True),
        ({"model": "samsung *"}, False),
        ({"path": "/dev/sdb"}, True),
        ({"path": "/dev/sd[c-z]"}, False),
        ({"path": "/dev/disk/by-path/pci-0000:3b:*"}, True),
        ({"min_size": "4TB", "max_size": "4TB"}, True),
        ({"min_size": "4.1TB"}, False),
        ({"max_size": "3.9TB"}, False),
        ({"tier": "ssd", "transport": "sata", "min_size": "1TB", "path": "*"}, True),
        ({"tier": "ssd", "transport": "nvme"}, False),
    ],
)
def test_a_rule_fits_when_all_it_says_does(rule: dict[str, Any], fits: bool) -> None:
    assert rules.fits(DiskRule.model_validate(rule), DISK) is fits


def test_the_tier_is_the_one_that_was_given() -> None:
    given = replace(DISK, spec=DiskSpec(tier_override=Tier.HDD))
    assert rules.fits(DiskRule(tier=Tier.HDD), given)
    assert not rules.fits(DiskRule(tier=Tier.SSD), given)


def test_no_rule_claims_nothing_and_an_exclusion_wins() -> None:
    everything, this = DiskRule(path="*"), DiskRule(path="/dev/sdb")
    assert not rules.claims(DiskSettings(), DISK)
    assert rules.claims(DiskSettings(claim=(this,)), DISK)
    assert not rules.claims(DiskSettings(claim=(everything,), exclude=(this,)), DISK)

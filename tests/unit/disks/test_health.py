"""What disks tell of themselves becomes a verdict with reasons: on documents of smartctl 7.3 for every kind of disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.disks.health import Measures, assess, from_smartctl
from agent.model import Health

SMART = Path(__file__).parent / "smart"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SMART / f"{name}.json").read_text())
    return found


CASES: list[tuple[str, Health, list[str]]] = [
    ("nvme", Health.HEALTHY, []),
    (
        "nvme-failing",
        Health.FAILING,
        [
            "its spare blocks are used up to the threshold",
            "it calls itself unreliable after errors",
            "113 % of its rated writes are used",
            "4 % of its spare blocks are left, below its threshold of 10 %",
            "27 errors that could not be corrected",
        ],
    ),
    (
        "nvme-hot",
        Health.DEGRADED,
        ["its temperature is beyond what is allowed", "its temperature is 84 °C, 70 °C and more is too hot"],
    ),
    ("nvme-worn", Health.DEGRADED, ["93 % of its rated writes are used", "3 errors that could not be corrected"]),
    ("sata-hdd", Health.HEALTHY, []),
    (
        "sata-hdd-pending",
        Health.DEGRADED,
        ["2 errors that could not be corrected", "8 sectors cannot be read", "16 sectors are reallocated"],
    ),
    (
        "sata-hdd-failing",
        Health.FAILING,
        [
            "SMART attributes below their threshold: Reallocated_Sector_Ct",
            "it expects to fail soon (SMART self-assessment)",
            "77 errors that could not be corrected",
            "312 sectors cannot be read",
            "2944 sectors are reallocated",
        ],
    ),
    ("sata-ssd-worn", Health.DEGRADED, ["94 % of its rated writes are used"]),
    ("sas", Health.HEALTHY, []),
    ("sas-defects", Health.DEGRADED, ["4 errors that could not be corrected", "57 sectors are reallocated"]),
    ("sas-failing", Health.FAILING, ["it expects to fail soon (SMART self-assessment)"]),
    ("qemu-nvme", Health.HEALTHY, []),
    ("qemu-sata", Health.HEALTHY, []),
    ("asleep", Health.UNKNOWN, ["smartctl found nothing: Device is in STANDBY mode, exit(2)"]),
    ("no-smart", Health.UNKNOWN, ["smartctl found nothing: /dev/vda: Unable to detect device type"]),
]


@pytest.mark.parametrize(("name", "health", "reasons"), CASES, ids=[case[0] for case in CASES])
def test_documents(name: str, health: Health, reasons: list[str]) -> None:
    found = assess(from_smartctl(document(name)))
    assert (found.health, list(found.reasons)) == (health, reasons)


def test_every_recorded_document_has_a_case() -> None:
    assert {path.stem for path in SMART.glob("*.json")} == {case[0] for case in CASES}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"smartctl": None},
        {"smartctl": {"messages": "none"}},
        {"nvme_smart_health_information_log": [1]},
        {"ata_smart_attributes": {"table": "x"}},
        {"ata_smart_attributes": {"table": [None, 3, {"id": "5"}]}},
    ],
)
def test_a_document_of_another_form_is_unknown(broken: dict[str, Any]) -> None:
    assert assess(from_smartctl(broken)).health is Health.UNKNOWN


@pytest.mark.parametrize(
    ("bit", "health"),
    [(0, "FAILING"), (1, "DEGRADED"), (2, "FAILING"), (3, "FAILING"), (4, "FAILING"), (5, "DEGRADED")],
)
def test_each_critical_warning_of_nvme(bit: int, health: str) -> None:
    found = assess(Measures(critical_warning=1 << bit, passed=False))
    assert (found.health, len(found.reasons)) == (Health[health], 1)


WELL = Measures(passed=True, percentage_used=0, available_spare=100, spare_threshold=10, media_errors=0)


@pytest.mark.parametrize(
    ("changes", "health"),
    [
        ({"percentage_used": 89}, "HEALTHY"),
        ({"percentage_used": 90}, "DEGRADED"),
        ({"available_spare": 10}, "HEALTHY"),
        ({"available_spare": 9}, "FAILING"),
        ({"temperature_c": 69}, "HEALTHY"),
        ({"temperature_c": 70}, "DEGRADED"),
        ({"temperature_c": 60, "temperature_max_c": 60}, "DEGRADED"),
        ({"temperature_c": 2**64 - 273}, "HEALTHY"),
        ({"media_errors": 1}, "DEGRADED"),
    ],
)
def test_thresholds(changes: dict[str, int], health: str) -> None:
    assert assess(replace(WELL, **changes)).health is Health[health]


def test_a_disk_that_tells_nothing_is_unknown() -> None:
    assert assess(Measures()).health is Health.UNKNOWN
    assert assess(Measures(temperature_c=40)).health is Health.UNKNOWN

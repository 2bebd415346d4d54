"""How well a disk is, by what it says of itself (NVMe health log, SMART attributes, SCSI error counters). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.model import Health


@dataclass(frozen=True, slots=True)
class Measures:
    """What a disk tells; None: it does not. Temperatures in °C."""

    passed: bool | None = None
    """Its own verdict."""
    critical_warning: int = 0
    """NVM Express Base 2.0, figure 207: byte 0 of the health log."""
    temperature_c: int | None = None
    temperature_max_c: int | None = None
    """Where it says to be too hot."""
    percentage_used: int | None = None
    """Of its rated writes; may pass 100."""
    available_spare: int | None = None
    spare_threshold: int | None = None
    media_errors: int | None = None
    """Errors that lost data: NVMe media errors, uncorrected errors."""
    reallocated: int | None = None
    pending: int | None = None
    """Sectors that cannot be read now."""
    failing_attributes: tuple[str, ...] = ()
    """SMART attributes at or below their threshold now."""
    power_on_hours: int | None = None
    problem: str = ""
    """Why nothing is known, in words."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """`reasons` say what is not well, or why it is not known."""

    health: Health
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "nothing is wrong by the disk's own account"


WORN_PERCENT = 90
HOT_C = 70
"""Where a disk does not tell itself; the limits that makers give are 70 to 85."""

TEMPERATURES_C = range(-40, 150)
"""Others are no temperatures: NVMe's 0 K, and what is below 0 °C comes from SPDK as a number near 2**64."""

_CRITICAL = (
    (0x01, Health.FAILING, "its spare blocks are used up to the threshold"),
    (0x02, Health.DEGRADED, "its temperature is beyond what is allowed"),
    (0x04, Health.FAILING, "it calls itself unreliable after errors"),
    (0x08, Health.FAILING, "it has become read-only"),
    (0x10, Health.FAILING, "its backup of volatile memory has failed: a power cut loses data"),
    (0x20, Health.DEGRADED, "its persistent memory region is unreliable"),
)
_ORDER = (Health.HEALTHY, Health.DEGRADED, Health.FAILING)


def assess(measures: Measures) -> Assessment:
    """The worst of all that the disk tells, with everything that is not as it should be."""
    if measures.problem:
        return Assessment(Health.UNKNOWN, (measures.problem,))
    found = [*_own_verdict(measures), *_wear(measures), *_errors(measures), *_heat(measures)]
    if not found and measures.passed is None and measures == Measures(temperature_c=measures.temperature_c):
        return Assessment(Health.UNKNOWN, ("the disk tells nothing of its health",))
    worst = max((health for health, _ in found), key=_ORDER.index, default=Health.HEALTHY)
    return Assessment(worst, tuple(dict.fromkeys(text for _, text in found)))


def _own_verdict(measures: Measures) -> Iterator[tuple[Health, str]]:
    for bit, health, text in _CRITICAL:
        if measures.critical_warning & bit:
            yield health, text
    if measures.failing_attributes:
        yield Health.FAILING, f"SMART attributes below their threshold: {', '.join(measures.failing_attributes)}"
    # NVMe's verdict is its byte of warnings once more, a temperature among them.
    if measures.passed is False and not measures.critical_warning:
        yield Health.FAILING, "it expects to fail soon (SMART self-assessment)"


def _wear(measures: Measures) -> Iterator[tuple[Health, str]]:
    used, spare, threshold = measures.percentage_used, measures.available_spare, measures.spare_threshold
    if used is not None and used >= WORN_PERCENT:
        yield Health.DEGRADED, f"{used} % of its rated writes are used"
    if spare is not None and threshold is not None and spare < threshold:
        yield Health.FAILING, f"{spare} % of its spare blocks are left, below its threshold of {threshold} %"


def _errors(measures: Measures) -> Iterator[tuple[Health, str]]:
    if measures.media_errors:
        yield Health.DEGRADED, f"{measures.media_errors} errors that could not be corrected"
    if measures.pending:
        yield Health.DEGRADED, f"{measures.pending} sectors cannot be read"
    if measures.reallocated:
        yield Health.DEGRADED, f"{measures.reallocated} sectors are reallocated"


def _heat(measures: Measures) -> Iterator[tuple[Health, str]]:
    temperature, limit = measures.temperature_c, measures.temperature_max_c or HOT_C
    if temperature is not None and temperature in TEMPERATURES_C and temperature >= limit:
        yield Health.DEGRADED, f"its temperature is {temperature} °C, {limit} °C and more is too hot"


# --- smartctl ---

_REALLOCATED, _UNCORRECTED, _PENDING, _OFFLINE = 5, 187, 197, 198
_LIFE_LEFT = (231, 233, 202, 177)
"""SSD_Life_Left, Media_Wearout_Indicator, Percent_Lifetime_Remain, Wear_Leveling_Count: normalised, 100 is new."""


def from_smartctl(document: Mapping[str, Any]) -> Measures:
    """What `smartctl --json --all` told of a device: NVMe, ATA or SCSI. What it does not tell is None."""
    program = _table(document, "smartctl")
    passed = _table(document, "smart_status").get("passed")
    temperature = _table(document, "temperature")
    common: dict[str, Any] = {
        "passed": passed if isinstance(passed, bool) else None,
        "temperature_c": _number(temperature, "current"),
        "temperature_max_c": _number(temperature, "drive_trip"),
        "percentage_used": _number(_table(document, "endurance_used"), "current_percent"),
        "power_on_hours": _number(_table(document, "power_on_time"), "hours"),
    }
    if log := _table(document, "nvme_smart_health_information_log"):
        return Measures(**common | _nvme(log))
    if attributes := _attributes(document):
        return Measures(**common | _ata(attributes, common["percentage_used"]))
    if any(name.startswith("scsi_") for name in document):
        return Measures(**common | _scsi(document, common["percentage_used"]))
    if common["passed"] is not None:
        return Measures(**common)
    return Measures(problem=_problem(program))


def _nvme(log: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "critical_warning": _number(log, "critical_warning") or 0,
        "temperature_c": _number(log, "temperature"),
        "percentage_used": _number(log, "percentage_used"),
        "available_spare": _number(log, "available_spare"),
        "spare_threshold": _number(log, "available_spare_threshold"),
        "media_errors": _number(log, "media_errors"),
    }


def _attributes(document: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    rows = _table(document, "ata_smart_attributes").get("table")
    tables = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return {number: row for row in tables if (number := _number(row, "id")) is not None}


def _ata(rows: Mapping[int, Mapping[str, Any]], used: int | None) -> dict[str, Any]:
    def raw(number: int) -> int | None:
        return _number(_table(rows.get(number, {}), "raw"), "value")

    left = next((value for number in _LIFE_LEFT if (value := _number(rows.get(number, {}), "value"))), None)
    sectors = [value for number in (_PENDING, _OFFLINE) if (value := raw(number)) is not None]
    return {
        "reallocated": raw(_REALLOCATED),
        "pending": max(sectors, default=None),
        "media_errors": raw(_UNCORRECTED),
        "percentage_used": used if used is not None or left is None or left > 100 else 100 - left,
        "failing_attributes": tuple(
            str(row.get("name", number)) for number, row in rows.items() if row.get("when_failed") == "now"
        ),
    }


def _scsi(document: Mapping[str, Any], used: int | None) -> dict[str, Any]:
    counters = _table(document, "scsi_error_counter_log")
    errors = [_number(_table(counters, kind), "total_uncorrected_errors") for kind in ("read", "write", "verify")]
    told = [value for value in errors if value is not None]
    worn = _number(document, "scsi_percentage_used_endurance_indicator")
    return {
        "reallocated": _number(document, "scsi_grown_defect_list"),
        "media_errors": sum(told) if told else None,
        "percentage_used": used if used is not None else worn,
    }


def _problem(program: Mapping[str, Any]) -> str:
    messages = program.get("messages")
    texts = [str(each.get("string", "")) for each in messages if isinstance(each, Mapping)] if messages else []
    return f"smartctl found nothing: {'; '.join(filter(None, texts)) or 'it gave no reason'}"


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(document: Mapping[str, Any], name: str) -> int | None:
    found = document.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None

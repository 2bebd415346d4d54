"""Who a disk is, whatever slot, machine or name in /dev it has: pure functions on what it says of itself.

The kernel's word (sysfs) is taken before udev's, so that a disk has the same identity whether udev's database can be
read or not.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_HEX = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOT_A_SERIAL = frozenset(
    {"", "0", "none", "unknown", "n/a", "na", "null", "default", "0123456789abcdef", "0123456789"}
)
"""What firmware of cheap bridges says of every disk alike."""

_SLUG_MAX = 24


@dataclass(frozen=True, slots=True)
class Marks:
    """What a disk says of itself, as text of sysfs or udev; "" is absent."""

    nguid: str = ""
    eui: str = ""
    uuid: str = ""
    wwid: str = ""
    """sysfs wwid: `naa.…`, `eui.…`, `uuid.…`, `nvme.…`, `t10.…`; for a multipath map `mpath-3…`."""
    wwn: str = ""
    """udev's ID_WWN_WITH_EXTENSION, else ID_WWN."""
    md_uuid: str = ""
    nsid: str = ""
    """NVMe namespace: its controller's serial number is that of all its namespaces."""
    model: str = ""
    serial: str = ""


def identity(marks: Marks) -> str:
    """A name made of what is unique to the disk, fit for a resource and a pool. "" when nothing is.

    By NGUID, EUI-64, namespace UUID or WWN; else by model and serial number (for an NVMe namespace also its id).
    """
    kind, _, value = marks.wwid.partition(".")
    return (
        _hex("nguid", marks.nguid, 32)
        or _hex("eui", marks.eui, 16)
        or _uuid(marks.uuid)
        or _by_wwid(kind, value)
        or _hex("wwn", marks.wwn.lower().removeprefix("0x"))
        or _md(marks.md_uuid)
        or _multipath(marks.wwid)
        or _by_serial(marks)
    )


def same_text(text: str) -> str:
    """Spelling that sysfs and udev agree on: udev writes underscores for runs of white space."""
    return "_".join(text.replace("_", " ").split())


def _by_wwid(kind: str, value: str) -> str:
    if kind == "naa":
        return _hex("wwn", value)
    if kind == "eui":  # of NVMe: an NGUID has 16 bytes, an EUI-64 has 8
        return _hex("nguid", value, 32) or _hex("eui", value, 16)
    return _uuid(value) if kind == "uuid" else ""


def _hex(kind: str, text: str, digits: int | None = None) -> str:
    value = re.sub(r"[\s-]", "", text.lower())
    if not _HEX.fullmatch(value) or (digits and len(value) != digits) or set(value) <= {"0"} or set(value) <= {"f"}:
        return ""
    return f"{kind}-{value}"


def _uuid(text: str) -> str:
    value = text.strip().lower()
    return f"uuid-{value}" if _UUID.fullmatch(value) and _hex("", value, 32) else ""


def _md(text: str) -> str:
    return _hex("md", text.replace(":", ""), 32)  # mdadm groups the digits by colons, sysfs by hyphens


def _multipath(text: str) -> str:
    """`mpath-` and a SCSI identifier whose first digit is the type of designator (SPC-4 7.8.6): 3 is NAA, 2 EUI-64."""
    value = text.removeprefix("mpath-")
    if value == text or len(value) < 2:
        return ""
    known = {"3": "wwn", "2": "eui"}.get(value[0])
    return (known and _hex(known, value[1:])) or _named(value[1:], f"mpath {value}")


def _by_serial(marks: Marks) -> str:
    serial = same_text(marks.serial)
    if serial.lower() in _NOT_A_SERIAL or set(serial.lower()) <= set("0_-. "):
        return ""
    return _named(serial, "\n".join((same_text(marks.model), serial, marks.nsid)))


def _named(text: str, exact: str) -> str:
    """A readable part and a hash of the exact text, so that no two texts become one name."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_SLUG_MAX].strip("-")
    digest = hashlib.sha256(exact.encode(errors="surrogatepass")).hexdigest()[:12]
    return "-".join(part for part in ("sn", slug, digest) if part)

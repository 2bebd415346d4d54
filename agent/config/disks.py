"""Settings about disks: files that serve as disks, and which of a machine's disks are claimed without being asked."""

from __future__ import annotations

from typing import Self

from pydantic import AliasChoices, Field, model_validator

from agent.config.fields import AbsolutePath, Seconds, Section, Size, reworded, validated
from agent.errors import InvalidArgument, shorten
from agent.model import Tier
from agent.sizes import MIB


class FileDisk(Section):
    """A regular file used as a disk. In YAML either the text `PATH:SIZE:TIER` or these keys."""

    path: AbsolutePath = Field(description="The file; created sparse when missing, never shrunk.")
    size_bytes: Size = Field(
        ge=64 * MIB,
        multiple_of=4096,
        validation_alias=AliasChoices("size", "size_bytes"),
        description="Size of the disk, like `20GiB`; a multiple of 4 KiB, at least 64 MiB so that a pool fits.",
    )
    tier: Tier = Field(description="The tier it serves: `nvme`, `ssd` or `hdd`.")

    @classmethod
    def parse(cls, text: str) -> FileDisk:
        """A file disk from `PATH:SIZE:TIER`; the path may contain colons. Raises InvalidArgument."""
        return validated(cls, _split_file_disk(text), "file_disk", {})

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return reworded(_split_file_disk, value) if isinstance(value, str) else value


def _split_file_disk(text: str) -> dict[str, str]:
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        remedy = "write PATH:SIZE:TIER, like /var/lib/quarry/disk0.img:20GiB:ssd"
        raise InvalidArgument("file_disk", f"{shorten(text)!r} has not three parts", remedy)
    return {"path": parts[0], "size": parts[1], "tier": parts[2]}


class DiskRule(Section):
    """Which disks are meant: those that fit everything given here. At least one thing has to be given."""

    tier: Tier | None = Field(default=None, description="The tier: `nvme`, `ssd` or `hdd`.")
    transport: str | None = Field(
        default=None,
        description="How it is reached, as `quarry disks list` shows it: `nvme`, `sata`, `sas`, `virtio`...",
    )
    model: str | None = Field(default=None, description="Its model; `*`, `?` and `[...]` are wildcards.")
    path: str | None = Field(
        default=None,
        description="Its name in `/dev` or any of its links in `/dev/disk`, like `/dev/disk/by-path/pci-0000:3b:*`.",
    )
    min_size: Size | None = Field(default=None, ge=0, description="Least size, like `1TB`.")
    max_size: Size | None = Field(default=None, ge=0, description="Largest size, like `4TB`.")
    power_loss_protected: bool = Field(
        default=False,
        description="No condition, but what is known of these disks: they lose nothing at a power cut although they "
        "have a volatile write cache (capacitors, a controller with a battery), so it is left on "
        "([durability.md](durability.md)).",
    )

    @model_validator(mode="after")
    def _not_everything(self) -> Self:
        if not self.model_fields_set - {"power_loss_protected"}:
            raise ValueError("says nothing; to mean every disk write `path: '*'`")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError("min_size is above max_size")
        return self


class DiskSettings(Section):
    """Which disks of the machine become pools. None does without a rule here or `quarry disks claim`."""

    claim: tuple[DiskRule, ...] = Field(
        default=(),
        description="Rules; an eligible disk that fits one of them is claimed. A disk stays claimed when the rule "
        "goes, and one that was released by hand is not claimed by a rule again.",
    )
    exclude: tuple[DiskRule, ...] = Field(
        default=(), description="Rules; a disk that fits one of them is never claimed by a rule of `claim`."
    )
    known: tuple[DiskRule, ...] = Field(
        default=(),
        description="Rules that claim nothing: they say which disks are `power_loss_protected`.",
    )
    loop_devices: bool = Field(
        default=False,
        description="Whether loop devices on regular files count as disks: for trying things out and for tests.",
    )
    health_interval_s: Seconds = Field(
        default=600.0,
        ge=1,
        le=86400,
        description="How often each disk in service is asked for its health (NVMe log, SMART). Wear takes days; a disk "
        "that fails at once is noticed by its I/O errors.",
    )

    @model_validator(mode="after")
    def _nothing_said_of_excluded(self) -> Self:
        if any("power_loss_protected" in rule.model_fields_set for rule in self.exclude):
            raise ValueError("`power_loss_protected` in a rule of `exclude` says nothing: write it in one of `known`")
        return self

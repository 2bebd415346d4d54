"""Settings: what is accepted, what is refused and with which words, and that docs/configuration.md says the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agent.config.settings import ITEMS, FileDisk, Settings, load_settings, parse_size
from agent.errors import InvalidArgument
from agent.model import Tier

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("1kB".replace("k", "K"), 1000),
        ("20GiB", 20 * 1024**3),
        (" 20 GiB ", 20 * 1024**3),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("1TB", 10**12),
        ("8PiB", 8 * 1024**5),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "20G", "20gib", "1e3", "0x10", "1.0001KiB", "٣GiB", "inf", "8192PiB", "9" * 10_000]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_size(text)
    assert caught.value.remedy
    assert len(str(caught.value)) < 300


def test_file_disk_path_may_contain_colons() -> None:
    disk = FileDisk.parse("/srv/a:b/disk0.img:20GiB:ssd")
    assert disk == FileDisk(path=Path("/srv/a:b/disk0.img"), size_bytes=20 * 1024**3, tier=Tier.SSD)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("/srv/disk0", "file_disk"),
        ("/srv/disk0:20GiB:", "file_disk"),
        ("/srv/disk0:20GiB:gold", "tier"),
        ("/srv/disk0:20:ssd", "size"),
        ("/srv/disk0:1.0GiBs:ssd", "size"),
        ("/srv/disk0:100000001B:ssd", "size"),
    ],
)
def test_bad_file_disks(text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        FileDisk.parse(text)
    assert caught.value.field == field
    assert caught.value.remedy


def test_defaults_follow_the_state_dir(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path, node_name="n1")
    assert settings.csi_endpoint == f"unix://{tmp_path}/csi.sock"
    assert settings.mount_roots == (Path("/var/lib/kubelet"), tmp_path / "csi")
    assert settings.spdk_socket is None


def test_relative_paths_are_made_absolute() -> None:
    assert load_settings(state_dir=Path("state")).state_dir == Path.cwd() / "state"


def test_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "quarry.yaml"
    file.write_text(
        "node_name: from-file\n"
        "nvmf_port: 4421\n"
        "file_disks: ['/srv/d0:1GiB:hdd', {path: /srv/d1, size: 64MiB, tier: nvme}]\n"
        "pool: {cluster_bytes: 4MiB}\n"
        "log: {level: debug}\n"
    )
    settings = load_settings(file, node_name="cli", nvmf_address=None, file_disks=(), log={"format": "json"})
    assert settings.node_name == "cli"
    assert settings.nvmf_port == 4421
    assert settings.nvmf_address == "127.0.0.1"
    assert [disk.tier for disk in settings.file_disks] == [Tier.HDD, Tier.NVME]
    assert settings.pool.cluster_bytes == 4 << 20
    assert (settings.log.level, settings.log.format) == ("debug", "json")


def test_settings_are_frozen_and_validated_in_python_too(tmp_path: Path) -> None:
    disks = (FileDisk(path=tmp_path / "d0", size_bytes=1 << 30, tier=Tier.SSD),)
    settings = load_settings(state_dir=tmp_path, file_disks=disks)
    assert settings.file_disks == disks
    with pytest.raises(ValueError, match="frozen"):
        settings.node_name = "other"


@pytest.mark.parametrize(
    ("yaml", "field", "says"),
    [
        ("node_nam: x", "node_nam", "did you mean node_name?"),
        ("zzz: 1", "zzz", "known keys here: csi_endpoint"),
        ("pool: {cluster: 1MiB}", "pool.cluster", "cluster_bytes"),
        ("pool: {cluster_bytes: 3MiB}", "pool", "not a power of two"),
        ("pool: {cluster_bytes: 20Mb}", "pool.cluster_bytes", "20GiB"),
        ("pool: {cluster_bytes: 1.5}", "pool.cluster_bytes", "integer"),
        ("pool: {overprovision_ratio: .nan}", "pool.overprovision_ratio", "finite"),
        ("pool: 7", "pool", "How disks become pools"),
        ("nvmf_port: 70000", "nvmf_port", "65535"),
        ("nvmf_port: yes", "nvmf_port", "integer"),
        ("nvmf_address: localhost", "nvmf_address", "not an IPv4 or IPv6 address"),
        ("nvmf_address: 0.0.0.0", "nvmf_address", "no address that a host can connect to"),
        ('nvmf_address: "::"', "nvmf_address", "no address that a host can connect to"),
        ('nvmf_address: "0:0::0"', "nvmf_address", "no address that a host can connect to"),
        ('nvmf_address: "::ffff:0.0.0.0"', "nvmf_address", "no address that a host can connect to"),
        ("nvmf_address: 255.255.255.255", "nvmf_address", "no address that a host can connect to"),
        ("nvmf_address: 224.0.0.1", "nvmf_address", "no address that a host can connect to"),
        ("node_name: 12", "node_name", "string"),
        ("node_name: a/b", "node_name", "not 1 to 253 letters"),
        (f"node_name: {'n' * 10_000}", "node_name", "not 1 to 253 letters"),
        ("csi_endpoint: tcp://0.0.0.0:1", "csi_endpoint", "unix://"),
        (f"csi_endpoint: unix:///{'s' * 120}", "csi_endpoint", "at most 107"),
        ('state_dir: "/a\\0b"', "state_dir", "NUL"),
        ("state_dir: 7", "state_dir", "path"),
        ("state_dir: ~nobody-here/x", "state_dir", "names no home folder"),
        ("mount_roots: []", "mount_roots", "at least 1"),
        ("file_disks: ['/d:1GiB:gold']", "file_disks.0.tier", "'nvme', 'ssd' or 'hdd'"),
        ("file_disks: [{path: /d, sise: 1GiB, tier: ssd}]", "file_disks.0.size", "required"),
        ("file_disks: ['/d:1GiB:ssd', '/d:2GiB:ssd']", "settings", "/d is named twice"),
        ("disks: {claim: [{}]}", "disks.claim.0", "to mean every disk write `path: '*'`"),
        ("disks: {claim: [{tier: gold}]}", "disks.claim.0.tier", "'nvme', 'ssd' or 'hdd'"),
        ("disks: {claim: [{modell: x}]}", "disks.claim.0.modell", "did you mean model?"),
        ("disks: {known: [{power_loss_protected: true}]}", "disks.known.0", "to mean every disk write `path: '*'`"),
        ("disks: {exclude: [{tier: ssd, power_loss_protected: true}]}", "disks", "write it in one of `known`"),
        ("disks: {exclude: [{min_size: 2TB, max_size: 1TB}]}", "disks.exclude.0", "min_size is above max_size"),
        ("rpc: {call_timeout_s: 0}", "rpc.call_timeout_s", "greater than 0"),
        ("rpc: {reconnect_min_s: 5.0}", "rpc", "above reconnect_max_s"),
        ("reconcile: {retry_min_s: 50}", "reconcile", "above retry_max_s"),
        ("log: {level: loud}", "log.level", "'debug'"),
        ("- a\n- b", "config", "not a mapping"),
        ("a: [", "config", "not YAML"),
        ("nvmf_port: 1\nnvmf_port: 2", "config", "appears twice"),
        ("? [a]\n: 1", "config", "not"),
    ],
)
def test_refusals_name_field_and_remedy(tmp_path: Path, yaml: str, field: str, says: str) -> None:
    file = tmp_path / "quarry.yaml"
    file.write_text(yaml)
    with pytest.raises(InvalidArgument) as caught:
        load_settings(file)
    assert caught.value.field == field
    assert caught.value.remedy
    assert says in str(caught.value)
    assert len(str(caught.value)) < 800


def test_unreadable_files(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InvalidArgument, match=str(file)):
            load_settings(file)
    (tmp_path / "binary").write_bytes(b"\x80\x00\x01")
    with pytest.raises(InvalidArgument, match="not YAML"):
        load_settings(tmp_path / "binary")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_settings(tmp_path / "empty.yaml") == load_settings()


# --- docs/configuration.md -------------------------------------------------------------------------------------

INTRODUCTION = """# Configuration

<!-- Generated from agent/config/settings.py: UPDATE_DOCS=1 python -m pytest tests/unit/test_config.py -->

`quarry standalone --config FILE` reads a YAML file; options on the command line win over it. Unknown keys, keys
given twice and values out of range are refused at start with the field and what would be right. Sizes are written
like `20GiB` (powers of 1024) or `20GB` (powers of 1000); names that end in `_s` are seconds; relative paths are taken
from the working directory.

```yaml
node_name: node-1
state_dir: /var/lib/quarry
file_disks:
  - /var/lib/quarry/disk0.img:20GiB:nvme
  - {path: /var/lib/quarry/disk1.img, size: 100GiB, tier: hdd}
disks:
  claim:
    - {tier: nvme, min_size: 1TB}
    - {model: "SAMSUNG MZ*", transport: sata}
  exclude:
    - {path: /dev/disk/by-path/pci-0000:3b:00.0-*}
  known:
    - {model: "RAID with battery", power_loss_protected: true}
pool:
  overprovision_ratio: 5
log:
  format: json
```
"""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "see text"
    value: Any = field.default
    return {None: "none", (): "none"}.get(value, f"`{value}`")


def _section(model: type[BaseModel], title: str) -> Iterator[str]:
    yield f"\n## {title}\n\n{(model.__doc__ or '').strip()}\n\n| key | default | meaning |\n|---|---|---|\n"
    nested = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested[name] = field.annotation
            yield f"| `{name}` | | {field.description} See [{name}](#{name}). |\n"
            continue
        alias = getattr(field.validation_alias, "choices", [name])[0]
        yield f"| `{alias}` | {_default(field)} | {field.description} |\n"
        if name in ITEMS:
            nested[name] = ITEMS[name]
    for name, section in nested.items():
        yield from _section(section, name)


def test_document_is_generated_from_the_model() -> None:
    expected = INTRODUCTION + "".join(_section(Settings, "Settings"))
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(expected)
    assert DOCUMENT.read_text() == expected, "run again with UPDATE_DOCS=1"


def test_the_example_in_the_document_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "quarry.yaml"
    file.write_text(DOCUMENT.read_text().split("```yaml\n")[1].split("```")[0])
    assert len(load_settings(file).file_disks) == 2


def test_every_field_is_described() -> None:
    def walk(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, name
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation)

    walk(Settings)

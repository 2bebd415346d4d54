from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.csi import pb

ROOT = Path(__file__).parents[3]
STUBS = ROOT / "agent" / "csi" / "pb"
IN_MODULE_CACHE = "pkg/mod/github.com/container-storage-interface/spec@v1.12.0/csi.proto"


def test_the_stubs_name_their_specification() -> None:
    assert pb.SPEC_VERSION == "1.12.0"
    assert not list(STUBS.glob("*.proto"))


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "csi.proto"
    other.write_text('syntax = "proto3";')
    done = _generate(other)
    assert done.returncode == 1
    assert "is not csi.proto of v1.12.0" in done.stderr


def test_generating_again_changes_nothing() -> None:
    proto = Path(os.environ.get("CSI_PROTO") or Path.home() / "go" / IN_MODULE_CACHE)
    if not proto.is_file():
        pytest.skip(f"no csi.proto: neither CSI_PROTO nor {proto} (make proto fetches it)")
    before = {each.name: each.stat().st_mtime_ns for each in STUBS.glob("csi*")}
    done = _generate(proto)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert {each.name: each.stat().st_mtime_ns for each in STUBS.glob("csi*")} == before


def _generate(proto: Path) -> subprocess.CompletedProcess[str]:
    shell = shutil.which("sh")
    assert shell
    environment = {**os.environ, "CSI_PROTO": str(proto)}
    return subprocess.run(
        [shell, str(ROOT / "scripts" / "proto.sh")], env=environment, capture_output=True, text=True, timeout=60
    )

"""The conformance suite of the CSI community, where it is installed (see docs/csi.md)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from .conftest import Machine

SANITY = os.environ.get("CSI_SANITY") or shutil.which("csi-sanity")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SANITY is None, reason="csi-sanity is neither on PATH nor named by CSI_SANITY"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this kernel has no loop devices"),
]


@pytest.mark.parametrize("access_type", ["mount", "block"])
async def test_csi_sanity(machine: Machine, access_type: str) -> None:
    pods = machine.folder / "pods"
    parameters = pods / "parameters.yaml"
    parameters.write_text("frontend: loop\n")
    suite = await asyncio.create_subprocess_exec(
        str(SANITY),
        f"-csi.endpoint={machine.settings.csi_endpoint}",
        f"-csi.mountdir={pods}/mount",
        f"-csi.stagingdir={pods}/staging",
        f"-csi.testvolumesize={64 << 20}",
        f"-csi.testvolumeexpandsize={128 << 20}",
        f"-csi.testvolumeparameters={parameters}",
        f"-csi.testvolumeaccesstype={access_type}",
        "-ginkgo.no-color",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(suite.communicate(), 110)
    finally:
        if suite.returncode is None:
            suite.kill()
            await suite.wait()
    assert suite.returncode == 0, output.decode()[-8000:]
    assert not (await machine.client.list_volumes()).entries

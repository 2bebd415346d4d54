"""The conformance suite of the CSI community, where it is present or Go can install it (docs/csi.md)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.csi import suite

from .conftest import Machine

MIB = 1 << 20
TIMEOUT_S = 200
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return suite.find()
    except suite.Missing as reason:
        pytest.skip(str(reason))


async def run(program: Path, machine: Machine, parameters: str, *arguments: str) -> suite.Report:
    """The suite's report on `machine`."""
    pods, junit = machine.folder / "pods", machine.folder / "junit.xml"
    (pods / "parameters.yaml").write_text(parameters)
    (pods / "mutable.yaml").write_text('iops: "2000"\nbandwidth: 100Mi\nreadBandwidth: "0"\n')
    process = await asyncio.create_subprocess_exec(
        str(program),
        f"-csi.endpoint={machine.settings.csi_endpoint}",
        f"-csi.mountdir={pods}/mount",
        f"-csi.stagingdir={pods}/staging",
        f"-csi.testvolumesize={64 * MIB}",
        f"-csi.testvolumeexpandsize={128 * MIB}",
        f"-csi.testvolumeparameters={pods}/parameters.yaml",
        f"-csi.testvolumemutableparameters={pods}/mutable.yaml",
        "-csi.testnodevolumeattachlimit",
        f"-ginkgo.junit-report={junit}",
        "-ginkgo.no-color",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()[-8000:]
    report = suite.Report.read(junit)
    assert not report.failed
    assert not report.skipped, f"skipped without a reason in docs/csi.md: {report.skipped}"
    print(f"csi-sanity: {len(report.passed)} passed")
    return report


async def is_clean(machine: Machine) -> bool:
    """Whether the suite left nothing."""
    return not (await machine.client.list_volumes()).entries and not (await machine.client.list_snapshots()).entries


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this kernel has no loop devices")
@pytest.mark.parametrize("access_type", ["mount", "block"])
async def test_everything_on_the_embedded_target(program: Path, machine: Machine, access_type: str) -> None:
    await run(program, machine, "frontend: loop\n", f"-csi.testvolumeaccesstype={access_type}")
    assert await is_clean(machine)


async def test_the_controller_on_both_targets(program: Path, any_machine: Machine) -> None:
    """Without the specs that stage: the nodes of a real target need a kernel with NVMe/TCP (tests/lab)."""
    report = await run(program, any_machine, "tier: ssd\n", "-ginkgo.skip=Node Service")
    assert len(report.passed) > 40
    assert await is_clean(any_machine)

"""Targets and exported disks for the tests in the machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.targets import Target, find_spdk_tgt

from .exports import Exports

if "QUARRY_LAB" not in os.environ:  # these tests need a machine of their own: `make lab`
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", params=["embedded", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == "real" and find_spdk_tgt() is None:
        pytest.skip("no spdk_tgt where the lab was started (SPDK_TGT or PATH)")
    return chosen


@pytest.fixture(scope="session")
def target(kind: str) -> Iterator[Target]:
    target = Target(kind)
    try:
        target.start()
        yield target
    finally:
        target.close()


@pytest.fixture
async def exports(target: Target) -> AsyncIterator[Exports]:
    """Disks of this test, exported by the target; disconnected and gone at the end."""
    async with Exports(target) as exports:
        yield exports


@pytest.fixture(autouse=True)
def kernel_log() -> Iterator[None]:
    """The kernel never warns (lockdep, hung task, BUG), whatever a test does."""
    Path("/dev/kmsg").write_text("quarry-lab: test begins\n")
    yield
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines: list[str] = []
    try:
        while True:
            lines.append(os.read(descriptor, 8192).decode(errors="replace"))
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    begins = max(index for index, line in enumerate(lines) if "quarry-lab: test begins" in line)
    bad = [line for line in lines[begins:] if any(word in line for word in ("BUG:", "WARNING:", "blocked for more"))]
    assert not bad, "".join(bad)

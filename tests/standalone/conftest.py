from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import Settings, load_settings
from tests.contract.targets import free_port
from tests.crash.conftest import machine

__all__ = ["machine"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: UNIX sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="q-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def settings(folder: Path) -> Callable[..., Settings]:
    """Settings of an agent with the embedded target and the given file disks."""

    def make(*file_disks: str, **more: Any) -> Settings:
        return load_settings(
            node_name="node-a",
            state_dir=folder / "state",
            csi_endpoint=f"unix://{folder}/csi.sock",
            nvmf_port=free_port(),
            file_disks=file_disks,
            **more,
        )

    return make

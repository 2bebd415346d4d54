"""`quarry` as an administrator runs it against a cluster, by kubectl."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulator.emulator import Emulator

from .plane import Plane

_PLUGIN = "import sys; sys.argv[0] = 'kubectl-quarry'; from agent.cli.main import main; main()"


async def quarry(plane: Plane, *arguments: str, plugin: bool = False) -> subprocess.CompletedProcess[str] | None:
    """What became of the command; None where kubectl is not there or cannot be used. `plugin`: as `kubectl quarry`."""
    kubectl = shutil.which("kubectl", path=f"{os.environ.get('KUBEBUILDER_ASSETS', '')}:{os.environ['PATH']}")
    if kubectl is None or isinstance(plane, Emulator):  # which does not tell kubectl what kinds it has
        return None
    path = f"{Path(kubectl).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PATH": path}
    program = ["-c", _PLUGIN] if plugin else ["-m", "agent.cli.main"]
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

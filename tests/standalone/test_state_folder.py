"""One agent on a state folder, whatever is deleted in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config.settings import Settings
from agent.daemon.standalone import Standalone
from agent.errors import FailedPrecondition


async def test_a_second_agent_is_kept_out_also_when_files_are_deleted(
    settings: Callable[..., Settings], folder: Path
) -> None:
    given = settings(f"{folder}/d0.img:1GiB:ssd")
    async with Standalone(given) as agent:
        await agent.wait_ready(30)
        for file in given.state_dir.glob("*.lock"):
            file.unlink()
        (folder / "elsewhere").symlink_to(given.state_dir)
        for state_dir in (given.state_dir, folder / "elsewhere"):
            second = given.model_copy(update={"state_dir": state_dir, "csi_endpoint": f"unix://{folder}/b.sock"})
            with pytest.raises(FailedPrecondition, match="another agent runs on"):
                async with Standalone(second):
                    pass

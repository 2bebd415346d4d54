"""What the log of an XFS filesystem says about how it was left, without changing it: by `xfs_logprint` (xfsprogs)."""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import CommandFailed
from agent.host import process

LOG_TIMEOUT_S = 60.0
_SUPERBLOCK = re.compile(r"\s+BUF:\s+#regs:\d+\s+start blkno:0x0\s+len:1\s.*")
_REMARKS = ("LOG REC ", "====", "TRANS:", "BUF:", "\tSUPER Block Buffer")


async def is_frozen_image(device: Path) -> bool:
    """Whether it is as after a freeze, so that nothing is lost if its log is not replayed.

    Freezing writes everything back and then logs the superblock once more, so that a crash while frozen looks for
    orphans (xfs_fs_freeze). Whatever else is in the log, or is not understood, says no.
    """
    try:
        done = await process.run(["xfs_logprint", "-t", str(device)], timeout_s=LOG_TIMEOUT_S)
    except CommandFailed:  # also of one that prints too much
        return False
    _, _, changes = done.stdout.partition("state: <DIRTY>")
    lines = [line for line in changes.splitlines() if line.strip()]
    return bool(lines) and all(line.startswith(_REMARKS) or _SUPERBLOCK.fullmatch(line) for line in lines)

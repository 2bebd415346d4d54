"""smartctl of smartmontools: what a disk tells of its health, as JSON."""

from __future__ import annotations

import json
from typing import Any

from agent.errors import CommandFailed
from agent.host import process

TIMEOUT_S = 60.0


async def read(device: str) -> dict[str, Any]:
    """The document about a device. A disk that sleeps is not woken, and tells nothing then.

    Raises FailedPrecondition when smartctl is not installed, DeadlineExceeded, CommandFailed when it prints no JSON.
    """
    # The exit code is a set of flags of which most tell about the disk (smartctl(8)): the document says it all.
    argv = ["smartctl", "--json=c", "--all", "--nocheck=standby", device]
    found = await process.run(argv, timeout_s=TIMEOUT_S, ok_codes=range(256))
    try:
        document = json.loads(found.stdout)
    except ValueError as error:
        raise CommandFailed(argv, found.code, found.stderr or "it printed no JSON") from error
    if not isinstance(document, dict):
        raise CommandFailed(argv, found.code, "it printed no JSON object")
    return document

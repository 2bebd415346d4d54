"""The file that says where an agent serves HTTP: whoever is on this machine finds the agent by it."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.diag import ENDPOINT_FILE
from agent.tasks.background import Background

LOOK_S = 2.0

log = logging.getLogger(__name__)


class EndpointFile:
    """ENDPOINT_FILE in `folder`, from `start` to `stop`; written until it is, again when it was removed or spoilt."""

    def __init__(self, folder: Path, told: dict[str, Any]) -> None:
        self._file = folder / ENDPOINT_FILE
        self._draft = folder / f".{ENDPOINT_FILE}"
        self._text = json.dumps(told) + "\n"
        self._was_written = False
        self._problem = ""
        self._background = Background()

    async def start(self) -> None:
        """Write it. When that fails an agent works all the same: it is said, and goes on in the background."""
        await self._write()
        self._background.every("endpoint-file", LOOK_S, self._look)

    async def stop(self) -> None:
        """Remove it, unless another agent has written its own there since."""
        await self._background.stop()
        with suppress(OSError):
            if self._file.read_text(errors="replace") == self._text:
                self._file.unlink()

    async def _look(self) -> None:
        if not self._was_written or await asyncio.to_thread(_is_spoilt, self._file):
            await self._write()

    async def _write(self) -> None:
        problem = await asyncio.to_thread(self._try)
        if problem and problem != self._problem:
            # A role without a state folder: whoever asks knows the address.
            log.info("%s is not written: %s; it is tried again every %g s", self._file, problem, LOOK_S)
        elif self._problem and not problem:
            log.info("%s is written now", self._file)
        self._problem, self._was_written = problem, not problem

    def _try(self) -> str:
        """Why it could not be written; "" when it was. Meanwhile there is none: what an earlier agent left is wrong."""
        try:
            self._draft.write_text(self._text)
            self._draft.replace(self._file)
        except OSError as error:
            for each in (self._draft, self._file):
                with suppress(OSError):
                    each.unlink()
            return error.strerror or str(error)
        return ""


def remove_stale(folder: Path) -> None:
    """Remove the file of an agent that was killed: nobody answers there. One that lives keeps its own."""
    file = folder / ENDPOINT_FILE
    with suppress(OSError, ValueError, KeyError, TypeError):
        if not Path(f"/proc/{int(json.loads(file.read_text())['pid'])}").exists():
            file.unlink()


def _is_spoilt(file: Path) -> bool:
    """Whether it is not there, or says nothing: cut short by a full filesystem, or emptied by hand."""
    try:
        return not json.loads(file.read_text())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return True

"""Small durable notes on this machine, one JSON file each: what was about to be done when the power went."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.errors import Unavailable

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Journal:
    """Notes by key in one directory. A write or removal that returned survives `kill -9` and power loss.

    Raises Unavailable when the directory cannot be written to (no space left, read-only).
    A key comes from callers, so anything that is no plain name is simply absent; writing under it is a ValueError.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        """`durable` False: for what means nothing once the machine has restarted; survives `kill -9` only."""
        self._directory = directory
        self._durable = durable

    def read(self, key: str) -> dict[str, str] | None:
        if not _KEY.fullmatch(key):
            return None
        try:
            note = json.loads(self._file(key).read_bytes())
        except (FileNotFoundError, ValueError):  # ValueError: not one of ours, since ours appear complete or not at all
            return None
        return {str(name): str(value) for name, value in note.items()} if isinstance(note, dict) else None

    async def write(self, key: str, note: dict[str, str]) -> None:
        """Done when it returns, also when it returns by cancellation: a late write would undo a later removal."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be a file name")
        await _to_the_end(partial(self._write, key, note))

    async def remove(self, key: str) -> None:
        """Forget; absent is fine. Cancellation as with `write`."""
        if _KEY.fullmatch(key):
            await _to_the_end(partial(self._remove, key))

    def _write(self, key: str, note: dict[str, str]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._draft(key)
        with draft.open("w") as file:
            json.dump(note, file)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        draft.replace(self._file(key))
        self._sync_directory()

    def _remove(self, key: str) -> None:
        self._draft(key).unlink(missing_ok=True)  # of a write that a crash cut off
        try:
            self._file(key).unlink()
        except FileNotFoundError:
            return
        self._sync_directory()

    def keys(self) -> list[str]:
        """Keys of all notes, and of those that a crash cut off: these read as absent and can be removed."""
        try:
            names = [entry.name for entry in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        found = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        found |= {name.removesuffix(".new").removeprefix(".") for name in names if name.endswith(".new")}
        return sorted(key for key in found if _KEY.fullmatch(key))

    def _draft(self, key: str) -> Path:
        return self._directory / f".{key}.new"

    def _file(self, key: str) -> Path:
        return self._directory / f"{key}.json"

    def _sync_directory(self) -> None:
        if not self._durable:
            return
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _to_the_end(work: Callable[[], None]) -> None:
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
    except OSError as error:
        raise Unavailable(f"a note cannot be kept: {error.strerror} ({error.filename or 'state folder'})") from error

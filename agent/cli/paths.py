"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """Refuses an empty one, which would be the working directory: `--state-dir "$UNSET"`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
FOLDER = _Path(file_okay=False, path_type=Path)

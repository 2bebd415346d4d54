"""What is kept in the state folder is made once; what a power cut left half is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import Unavailable
from agent.host.kept import kept


def test_made_once(tmp_path: Path) -> None:
    assert kept(tmp_path / "name", lambda: "first") == "first"
    assert kept(tmp_path / "name", lambda: "second") == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["name"]


def test_an_empty_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("\n")
    assert kept(tmp_path / "name", lambda: "made") == "made"
    assert kept(tmp_path / "name", lambda: "again") == "made"


def test_no_folder_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="gone/name cannot be kept"):
        kept(tmp_path / "gone" / "name", lambda: "made")

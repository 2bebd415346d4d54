"""Paths from callers: what is refused, and that nothing follows a link below an allowed root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import InvalidArgument
from agent.host.paths import check_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = Path(os.path.realpath(tmp_path)) / "root"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative/path",
        "/etc/passwd",
        "{root}",
        "{root}/",
        "{root}-sibling/x",
        "{root}/../x",
        "{root}/a/../../x",
        "{root}/./x",
        "{root}/a\nb",
        "{root}/a\0b",
        "{root}/a\x7fb",
        "{root}/" + "x" * 256,
        "{root}/" + "ä" * 128,
        "{root}/" + "x/" * 2048,
        "{root}/" + "n" * 10_000,
        "{root}/\ud800",
    ],
    ids=range(17),
)
def test_refused_with_the_field_named(root: Path, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_path("staging_target_path", path.replace("{root}", str(root)), [root])
    assert caught.value.field == "staging_target_path"
    assert len(str(caught.value)) < 600


def test_outside_names_the_allowed_roots(root: Path) -> None:
    with pytest.raises(InvalidArgument, match=str(root)):
        check_path("path", "/somewhere/else", [root])
    with pytest.raises(InvalidArgument, match="none are configured"):
        check_path("path", "/somewhere/else", [])


@pytest.mark.parametrize("name", ["a", "a b", "ünïcödé", "x" * 255, "deep/er/still", "...", "-o", "a\\040b"])
def test_allowed(root: Path, name: str) -> None:
    assert check_path("path", root / name, [Path("/other"), root]).real == root / name


def test_link_below_the_root_is_refused_wherever_it_is(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "inside").mkdir()
    (root / "to-inside").symlink_to(root / "inside")
    for name in ("link", "link/x", "dangling", "dangling/x", "to-inside", "to-inside/x"):
        with pytest.raises(InvalidArgument, match="symbolic link"):
            check_path("path", root / name, [root])


def test_link_swapped_in_after_the_check_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    checked = check_path("path", root / "a" / "target", [root])
    (root / "a").symlink_to(outside)
    with pytest.raises(InvalidArgument, match="symbolic link"):
        checked.make_directory()
    assert list(outside.iterdir()) == []
    (root / "a").unlink()
    (root / "a").mkdir()
    (root / "a" / "target").symlink_to(outside)
    for refused in (checked.make_directory, checked.make_file):
        with pytest.raises(InvalidArgument, match="symbolic link"):
            refused()
    with pytest.raises(InvalidArgument), checked.opened():
        pytest.fail("opened through a link")


def test_root_behind_a_link_is_the_administrators_choice(root: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    checked = check_path("path", alias / "target", [alias])
    checked.make_directory()
    assert checked.real == root / "target"
    assert (root / "target").is_dir()


def test_make_and_remove_are_repeatable(root: Path) -> None:
    directory, file = (check_path("path", root / name, [root]) for name in ("directory", "file"))
    for _ in range(2):
        directory.make_directory()
        file.make_file()
    assert (root / "directory").is_dir()
    assert (root / "file").is_file()
    with pytest.raises(InvalidArgument, match="not a directory"):
        check_path("path", root / "file", [root]).make_directory()
    with pytest.raises(InvalidArgument, match="not a regular file"):
        check_path("path", root / "directory", [root]).make_file()
    for _ in range(2):
        directory.remove()
        file.remove()
    assert list(root.iterdir()) == []


def test_nothing_with_content_is_removed(root: Path) -> None:
    (root / "file").write_text("precious")
    (root / "directory").mkdir()
    (root / "directory" / "x").touch()
    with pytest.raises(InvalidArgument):
        check_path("path", root / "file", [root]).remove()
    with pytest.raises(OSError, match="not empty"):
        check_path("path", root / "directory", [root]).remove()


def test_parent_must_exist(root: Path) -> None:
    with pytest.raises(InvalidArgument, match="does not exist"):
        check_path("path", root / "no" / "target", [root]).make_directory()

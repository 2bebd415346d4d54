"""What is read of a Dockerfile; ours in particular, so that `make e2e` can assemble its image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.dockerfile import admitted, parse

ROOT = Path(__file__).resolve().parents[2]


def test_ours_is_understood_and_sees_what_it_copies() -> None:
    build, last = parse((ROOT / "Dockerfile").read_text())
    ignore = (ROOT / ".dockerignore").read_text()
    copied = [name for step in build.steps if step.kind == "COPY" for name in step.words()[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "agent"}
    assert all(admitted(ignore, name) for name in copied)
    assert {step.flags["from"] for step in last.steps if step.kind == "COPY"} == {build.name}
    assert [step.command() for step in last.steps if step.kind == "ENTRYPOINT"] == [["quarry"]]


def test_a_step_goes_on_after_a_backslash_and_comments_do_not_count() -> None:
    (stage,) = parse("# one\nFROM a AS b\nRUN x \\\n  # two\n  && y\nCMD z 1\n")
    assert (stage.name, stage.base) == ("b", "a")
    assert [(step.kind, step.text.split(), step.line) for step in stage.steps] == [
        ("RUN", ["x", "&&", "y"], 3),
        ("CMD", ["z", "1"], 6),
    ]
    assert stage.steps[1].command() == ["/bin/sh", "-c", "z 1"]


@pytest.mark.parametrize("text", ["FROM a\nADD x y\n", "FROM a\nCOPY --chown=1 x y\n", "RUN x\n", "# nothing\n"])
def test_what_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|no FROM"):
        parse(text)


@pytest.mark.parametrize(
    ("path", "seen"),
    [("agent/cli/main.py", True), ("agent/__pycache__/x.pyc", False), ("tests/x.py", False), ("LICENSE", True)],
)
def test_what_is_ignored_is_not_seen(path: str, seen: bool) -> None:
    assert admitted((ROOT / ".dockerignore").read_text(), path) is seen

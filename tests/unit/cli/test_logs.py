"""Log lines as they reach stderr."""

from __future__ import annotations

import json
import logging

import pytest

from agent.cli import logs


@pytest.fixture(autouse=True)
def restore_logging() -> object:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_json_lines_carry_fields_and_hide_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    log = logging.getLogger("agent.volumes")
    log.debug("not shown")
    log.warning("slow %s", "création", extra={"volume": "vol-1", "seconds": 0.5, "level": "mine", "path": object})
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["time"].endswith("Z")
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "agent.volumes", "slow création")
    assert (entry["volume"], entry["seconds"], entry["field_level"]) == ("vol-1", 0.5, "mine")


def test_an_exception_stays_in_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("agent").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: two\nlines" in json.loads(line)["exception"]


def test_text_lines_quote_what_would_be_ambiguous(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "text")
    logging.getLogger("agent").debug("exported", extra={"nqn": "nqn.x", "why": "two words", "none": ""})
    assert capsys.readouterr().err.endswith('DEBUG   agent: exported nqn=nqn.x why="two words" none=""\n')


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_can_neither_end_a_line_nor_turn_it(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form)
    name = "a\n2026-01-01 ERROR forged \u202e\u2066\u200b\x1b[2J"
    logging.getLogger("agent").warning("volume %s is full", name, extra={"volume": name})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["volume"] == name

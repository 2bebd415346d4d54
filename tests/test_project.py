"""What a newcomer relies on: the make targets, the documentation's links and tables, the shape of the code."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.exit_codes import ExitCode

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
GENERATED = ROOT / "agent" / "csi" / "pb"


def sources() -> Iterator[Path]:
    return (path for path in sorted((ROOT / "agent").rglob("*.py")) if GENERATED not in path.parents)


def test_make_help_is_the_default_and_lists_every_target() -> None:
    done = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, timeout=30)
    listed = set(re.findall(r"^  make ([a-z0-9]+) +\S", done.stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split())
    assert listed >= {"help", "setup", "demo", "test", "lint", "bench"}


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert missing == []


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert [page for page in sorted(pages) if f"]({page})" not in index] == []


def test_the_exit_codes_are_documented_as_they_are() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    documented = {int(code) for row in rows for code in row.split(",")}
    assert documented == set(ExitCode)


# Nothing but the engine in agent/tasks may begin a task that nobody waits for. These begin one that somebody does.
AWAITED_TASKS = {
    "cli/demo/data.py": "the demo waits for its load",
    "cli/demo/run.py": "the demo waits for its story and its undoing",
    "daemon/controller.py": "the role ends with it, and says why",
    "daemon/node.py": "the role ends with it, and says why",
    "daemon/signals.py": "`either` waits for it",
    "daemon/target_side.py": "bindings: `noticed`",
    "disks/watch.py": "a TaskGroup; whatever ends it ends `Watch.run`, which is kept",
    "host/freeze.py": "`Freeze.end` waits for it",
    "host/journal.py": "waited for to its end",
    "host/process.py": "`Process.wait` waits for it, and `noticed`",
    "nvmf/initiator.py": "`noticed`",
    "nvmf/queue.py": "whatever ends it closes the queue, which everybody who waits hears of",
    "embedded/lvs/journal.py": "`commit` waits for it",
    "embedded/lvs/manager.py": "`noticed`",
    "embedded/lvs/store.py": "`noticed`",
    "embedded/nvmf/connection.py": "one command: whatever ends it is answered",
    "embedded/nvmf/remote.py": "`noticed`",
    "embedded/raid.py": "`noticed`",
    "embedded/server.py": "one call: whatever ends it is answered",
    "spdk/supervision.py": "waited for to its end",
    "volumes/target/bringup.py": "a TaskGroup that is waited for",
    "volumes/attach/long_work.py": "told to who waits, else logged and told to who asks next; the teller is `noticed`",
    "volumes/target/reconcile.py": "waited for, one after the other",
    "volumes/attach/stillness.py": "the pause ends with it, and logs what ended it",
}


def test_no_task_is_begun_that_may_end_unnoticed() -> None:
    begun = set[str]()
    for path in sources():
        name = path.relative_to(ROOT / "agent").as_posix()
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in calls}
        if names & {"create_task", "ensure_future", "Thread"} and not name.startswith("tasks/"):
            begun.add(name)
    threads = {"store/writer.py"}  # its outermost loop counts what it meets, and answers everybody who waits
    assert begun - AWAITED_TASKS.keys() - threads == set()
    assert AWAITED_TASKS.keys() - begun == set(), "begins no task any more: take it off the list"


NOTHING_TO_ZERO = {"volumes/target/seeding.py", "pools/metadata_pages.py"}
"""Deletes only lvols that never held anything."""


def test_no_lvol_is_deleted_without_a_note() -> None:
    """What the target has not zeroed when it is killed is found by the note (decision 0011)."""
    unnoted = []
    for path in (*(ROOT / "agent" / "volumes").rglob("*.py"), *(ROOT / "agent" / "pools").glob("*.py")):
        name = path.relative_to(ROOT / "agent").as_posix()
        tree = ast.parse(path.read_text())
        noted = {
            id(call)
            for block in ast.walk(tree)
            if isinstance(block, ast.AsyncWith) and any("deleting(" in ast.unparse(each) for each in block.items)
            for call in ast.walk(block)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "lvol.delete" and id(call) not in noted:
                unnoted.append(name)
    # actions: as the reconciler tells it, in its own block. zeroing: what it deletes is under its own note.
    assert set(unnoted) - NOTHING_TO_ZERO == {"volumes/target/actions.py", "pools/zeroing.py"}


def test_every_folder_of_code_is_a_package_so_that_a_wheel_has_it() -> None:
    folders = {path.parent for path in (ROOT / "agent").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in sources():
        text = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        if (lines := text.count("\n")) > FILE_LINES_MAX:
            large.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    large.append(f"{name}:{node.lineno} {node.name}: {length} lines")
    assert large == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(path) for path in sources() if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []

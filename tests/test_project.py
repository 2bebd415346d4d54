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

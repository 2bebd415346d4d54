"""The alerts of docs/operations.md: expressions that Prometheus understands, about metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
METRICS, ALERTS = PAGE.split("### Alerts worth having")
ROW = re.compile(r"(?<!\\)\|")
EXPRESSIONS = [
    expression.replace("\\|", "|")
    for line in ALERTS.split("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| alert", "|---"))
    for expression in re.findall(r"`([^`]+)`", ROW.split(line)[2])
]
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def test_there_are_some() -> None:
    assert len(EXPRESSIONS) >= 14


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_prometheus_understands_it(expression: str) -> None:
    promql_parser.parse(expression)
    documented = set(re.findall(r"`(quarry_[a-z_]+)`", METRICS))
    named = {SUFFIXES.sub("", name) for name in re.findall(r"quarry_[a-z_]+", expression)}
    assert named and named <= documented


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_does_not_vanish_with_one_of_its_parts(expression: str) -> None:
    """`sum(a) + sum(b)` is empty, and so silent, as soon as one of the two has no series."""
    added: list[str] = []

    def look(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.BinaryExpr) and str(node.op) in ("+", "-"):
            added.append(str(node))

    promql_parser.walk(promql_parser.parse(expression), look)
    assert added == []

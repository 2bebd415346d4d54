"""A policy linter finds nothing but what is excepted, with the reason, in the manifests themselves."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from .manifest import RENDERED, rendered

_NO_CPU_LIMIT = "--ignore-container-cpu-limit"
"""CPU limits are meant to be absent: they would throttle the polling of the target, and mounting when there is much."""


def test_kube_score_finds_nothing_but_what_is_excepted() -> None:
    if shutil.which("kube-score") is None:
        pytest.skip("no kube-score on PATH (docs/testing.md)")
    argv = ["kube-score", "score", _NO_CPU_LIMIT, "--output-format", "json", str(RENDERED)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    found = [
        f"{each['object_name']}: {check['check']['id']}: {comment['summary']}"
        for each in json.loads(done.stdout)
        for check in each["checks"]
        if not check["skipped"] and check["grade"] < 10
        for comment in check["comments"] or [{"summary": ""}]
    ]
    assert not found, "\n".join(found)


def test_exceptions_are_justified_next_to_them() -> None:
    """Each check that is switched off is named in a comment of the rendered manifest, with its reason."""
    text = RENDERED.read_text()
    comments = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    excepted = {
        name
        for each in rendered()
        for name in each["metadata"].get("annotations", {}).get("kube-score/ignore", "").split(",")
        if name
    }
    assert excepted
    for name in excepted:
        assert name in comments or f"-{name.removeprefix('container-security-context-')}" in comments, name

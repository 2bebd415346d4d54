"""`make demo` on the Debians that are told to work (`make fresh` does more there, as root and as an ordinary user)."""

from __future__ import annotations

import subprocess

import pytest

from tests.fresh.__main__ import DEMO, tried
from tests.fresh.machine import SUITES, base_of, missing


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("suite", SUITES)
def test_demo(suite: str, capfd: pytest.CaptureFixture[str]) -> None:
    if reason := missing():
        pytest.skip(reason)
    try:
        base_of(suite)
    except subprocess.CalledProcessError:
        pytest.skip(f"mmdebstrap cannot make Debian {suite} here: is its mirror reachable?")
    wrong = tried(suite, DEMO)
    said = capfd.readouterr()
    assert wrong == [], said.out[-3000:] + said.err[-3000:]
    assert "ok     mount" in said.out, "as root the demo mounts"

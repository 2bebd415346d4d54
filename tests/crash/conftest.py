from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.targets import find_spdk_tgt

from .machine import Machine
from .subject import Subject

_TRIED = pytest.StashKey[list[str]]()


@pytest.fixture(params=["embedded", "real"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine whose target runs; the test starts the agent."""
    if request.param == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    made = Machine(request.param)
    try:
        made.target.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def subjects() -> Iterator[dict[str, Subject]]:
    """Those in use, by kind of target."""
    made: dict[str, Subject] = {}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture(params=["embedded", "real"])
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    """A target that earlier cases of the crash matrix left as they found it, and no agent yet."""
    kind: str = request.param
    if kind == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    if kind in subjects and subjects[kind].dirty:
        subjects.pop(kind).close()
    if kind not in subjects:
        subjects[kind] = Subject(kind)
        subjects[kind].start()
    return subjects[kind]


@pytest.fixture
def tried(request: pytest.FixtureRequest, subject: Subject) -> Callable[[str, int, int], None]:
    """Tell how many points of an operation were tried: it is in the summary of the test run."""
    started = time.monotonic()

    def tell(name: str, points: int, kills: int) -> None:
        took_s = time.monotonic() - started
        line = f"{subject.kind:<9}{name:<32}{points:>4} points{kills:>5} kills{took_s:>7.1f} s"
        request.config.stash.setdefault(_TRIED, []).append(line)

    return tell


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(_TRIED, [])
    if lines:
        terminalreporter.section("crash matrix")
        for line in lines:
            terminalreporter.write_line(line)

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.targets import find_spdk_tgt

from .machine import Machine


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

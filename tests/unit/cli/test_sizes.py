"""Sizes as people read them."""

from __future__ import annotations

import pytest

from agent.cli.demo import scene
from agent.cli.tables import size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (12 * MIB + MIB // 2, "12.5 MiB"), (1022 * MIB, "1022 MiB"), (1 << 30, "1 GiB")],
)
def test_sizes_have_no_exponent(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text
    if size_bytes >= MIB:
        assert scene.size(size_bytes) == text

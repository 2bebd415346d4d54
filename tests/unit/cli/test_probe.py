"""The parts of `quarry probe` that need no network."""

from __future__ import annotations

import pytest

from agent.cli.probe import parse_address, percentile
from agent.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 4420),
        ("10.0.0.1:4421", "10.0.0.1", 4421),
        ("storage-1.example:1", "storage-1.example", 1),
        ("[fd00::1]", "fd00::1", 4420),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":4420", "a:", "a:0", "a:65536", "a:b", "fd00::1", "[fd00::1", "a:1:2", "[]:1", "a\n"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="ADDRESS"):
        parse_address(text)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 11)]
    assert [percentile(values, p) for p in (1, 50, 90, 99, 100)] == [1, 5, 9, 10, 10]
    assert percentile([7.0], 50) == 7.0

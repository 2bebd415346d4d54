"""A real API server with the rendered manifest applied, and clients that carry ServiceAccount tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.control_plane import control_plane
from tests.kube.installation import Installation


@pytest.fixture(scope="package")
def cluster() -> Iterator[Installation]:
    """The manifest applied by an administrator, once for all tests here."""
    with control_plane() as plane:
        cluster = Installation(plane)
        cluster.install()
        yield cluster

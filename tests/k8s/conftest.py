"""A real API server with the rendered manifest applied, and clients that carry ServiceAccount tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.control_plane import ControlPlane, missing

from .cluster import Cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """The manifest applied by an administrator, once for all tests here."""
    why = missing()
    if why:
        pytest.skip(why)
    plane = ControlPlane()
    try:
        plane.start()
        cluster = Cluster(plane)
        cluster.install()
        yield cluster
    finally:
        plane.stop()

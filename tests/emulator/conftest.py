"""The emulator in place of a kube-apiserver; there are no tokens and roles, so everybody comes as everybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kube.cluster import Cluster
from tests.kube.conftest import gate, open_store, store

from .emulator import Emulator, emulator

__all__ = ["gate", "open_store", "store"]


@pytest.fixture(scope="package")
def _plane() -> Iterator[Emulator]:
    with emulator() as plane:
        yield plane


@pytest.fixture
def plane(_plane: Emulator) -> Emulator:
    """Running, and empty."""
    _plane.clear()
    return _plane


@pytest.fixture
async def cluster(plane: Emulator) -> AsyncIterator[Cluster]:
    """Two nodes with a target and a disk each, and two controllers."""
    async with Cluster(plane.kubeconfig).running() as cluster:
        yield cluster

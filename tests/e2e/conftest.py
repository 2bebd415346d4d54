"""One cluster for all tests, inside the machine that `make e2e` starts, and the manifest installed on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.__main__ import ARCHIVE
from tests.e2e.cluster import Cluster, mounts
from tests.e2e.daemons import Daemons
from tests.e2e.installation import Flavour, flavours, render
from tests.e2e.progress import say

RUN = Path(os.environ.get("QUARRY_E2E_RUN", ""))
"""Folder of the machine; given inside it only."""
OUTSIDE = "QUARRY_E2E_RUN" not in os.environ


def reason() -> str:
    """Why there is no cluster for the tests."""
    return f"run by `make e2e`, which finds here: {programs.missing() or 'everything it needs'}"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Nothing of it is stopped: it ends with the machine, whatever happens."""
    daemons = Daemons(RUN)
    daemons.start(RUN / ARCHIVE)
    return Cluster(daemons)


class Installed:
    """The manifest of one flavour on the cluster, and what there was on the node before."""

    def __init__(self, cluster: Cluster, flavour: Flavour) -> None:
        self.flavour = flavour
        self.objects = render(flavour)
        self.mounts_before = mounts()
        cluster.apply(self.objects)


@pytest.fixture(scope="module", params=flavours(), ids=lambda each: each.name)
def installed(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Installed]:
    """Taken away by the last test of the module, as documented."""
    flavour: Flavour = request.param
    say(f"kubectl apply: {flavour.says}")
    yield Installed(cluster, flavour)

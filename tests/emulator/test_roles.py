"""The life of volumes by `quarry node` and `quarry controller` where there is no real API server."""

from __future__ import annotations

import pytest

from tests.kube.test_roles import (
    test_a_second_agent_of_a_node_is_refused,
    test_deleted_by_kubectl_while_in_use,
    test_the_life_of_volumes,
)

__all__ = [
    "test_a_second_agent_of_a_node_is_refused",
    "test_deleted_by_kubectl_while_in_use",
    "test_the_life_of_volumes",
]

pytestmark = pytest.mark.timeout(300)

"""The store of a cluster where there is no real API server: others who write, deletions, an API that throttles.

Not here: what the emulator has not (docs/decisions/0007), and what stops and starts the API server's own processes.
"""

from __future__ import annotations

from tests.kube.test_store_deletion import (
    test_a_deletion_that_was_cut_off_is_finished_by_repeating_it,
    test_a_finalizer_that_was_taken_off_comes_back,
    test_deleted_by_kubectl_it_waits_for_us,
    test_what_others_hold_stays_until_they_let_go,
)
from tests.kube.test_store_outages import (
    test_a_lost_answer_is_said_and_what_happened_is_seen,
    test_told_to_come_later_it_comes_later,
)
from tests.kube.test_store_writes import (
    test_cut_off_between_spec_and_status_the_wish_is_kept,
    test_no_update_of_two_stores_is_lost,
    test_others_between_spec_and_status,
    test_requests_of_each_operation,
)

__all__ = [
    "test_a_deletion_that_was_cut_off_is_finished_by_repeating_it",
    "test_a_finalizer_that_was_taken_off_comes_back",
    "test_a_lost_answer_is_said_and_what_happened_is_seen",
    "test_cut_off_between_spec_and_status_the_wish_is_kept",
    "test_deleted_by_kubectl_it_waits_for_us",
    "test_no_update_of_two_stores_is_lost",
    "test_others_between_spec_and_status",
    "test_requests_of_each_operation",
    "test_told_to_come_later_it_comes_later",
    "test_what_others_hold_stays_until_they_let_go",
]

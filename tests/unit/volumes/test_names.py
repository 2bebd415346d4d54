"""Names are mapped, never copied: whatever the orchestrator sends, the target gets something it accepts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.model import LVOL_NAME_MAX
from agent.volumes.rules.names import is_volume_id, serial_number, volume_id, volume_nqn, volume_of_nqn


@given(st.text())
def test_any_name_becomes_a_valid_id(name: str) -> None:
    volume = volume_id(name)
    assert is_volume_id(volume)
    assert len(volume) <= LVOL_NAME_MAX
    assert volume_of_nqn(volume_nqn(volume)) == volume
    assert len(serial_number(volume)) <= 20
    assert volume == volume_id(name)


def test_different_names_differ() -> None:
    assert len({volume_id(f"pvc-{index}") for index in range(1000)}) == 1000


def test_what_is_not_ours_is_not_taken_for_ours() -> None:
    for nqn in ("nqn.2014-08.org.nvmexpress.discovery", volume_nqn("vol-1"), volume_nqn(volume_id("a")) + "x", ""):
        assert volume_of_nqn(nqn) is None
    for name in ("../etc", "vol-" + "G" * 32, "vol-" + "0" * 31, "VOL-" + "0" * 32, "vol-" + "0" * 32 + "\n"):
        assert not is_volume_id(name)

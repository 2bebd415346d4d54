"""The properties (registers) of one controller and what writing them asks for (NVM Express Base 2.0, section 3.1.3)."""

from __future__ import annotations

from enum import Enum

from agent.embedded.nvmf.request import Refusal
from agent.nvmf.command import Property
from agent.nvmf.status import Status

_READY_TIMEOUT = 30
"""CAP.TO: 15 s in units of 500 ms."""
_VERSION = 2 << 16
_SIZES = {
    Property.CAP: 8,
    Property.VS: 4,
    Property.CC: 4,
    Property.CSTS: 4,
    Property.NSSR: 4,
    Property.AQA: 4,
    Property.ASQ: 8,
    Property.ACQ: 8,
    Property.CRTO: 4,
}
_CC_EN = 1
_CC_SHN = 3 << 14
_CC_AMS = 7 << 11
_CC_MPS = 15 << 7
_CSTS_RDY, _CSTS_CFS, _CSTS_SHST_DONE = 1, 2, 2 << 2


class Change(Enum):
    """What the controller has to do after a write."""

    NONE = "none"
    ENABLE = "enable"
    RESET = "reset"
    SHUTDOWN = "shutdown"


class Registers:
    """State of the properties. CAP: contiguous queues, no arbitration choice, NVM command set, 4 KiB pages."""

    def __init__(self, max_queue_depth: int) -> None:
        self._values = dict.fromkeys(_SIZES, 0)
        self._values[Property.CAP] = (
            (max_queue_depth - 1) | 1 << 16 | _READY_TIMEOUT << 24 | 1 << 37 | 1 << 59  # CQR, TO, CSS NVM, CRMS.CRWMS
        )
        self._values[Property.VS] = _VERSION
        self._values[Property.CRTO] = _READY_TIMEOUT

    @property
    def version(self) -> int:
        return self._values[Property.VS]

    @property
    def enabled(self) -> bool:
        return bool(self._values[Property.CC] & _CC_EN)

    @property
    def entry_sizes_set(self) -> bool:
        """CC says 64-byte submission and 16-byte completion queue entries, as I/O queues need."""
        return self._values[Property.CC] >> 16 & 0xFF == 0x46

    def fail(self) -> None:
        self._values[Property.CSTS] |= _CSTS_CFS

    @property
    def failed(self) -> bool:
        return bool(self._values[Property.CSTS] & _CSTS_CFS)

    def get(self, offset: int, size_code: int) -> int:
        """Property Get; raises Refusal."""
        which, shift = self._find(offset, size_code)
        value = self._values[which] >> shift
        return value & 0xFFFFFFFF if size_code == 0 else value

    def set(self, offset: int, size_code: int, value: int) -> Change:
        """Property Set; raises Refusal for what cannot be written or configured."""
        which, shift = self._find(offset, size_code)
        if which is Property.CC:
            return self._configure(value & 0xFFFFFFFF)
        if which in (Property.AQA, Property.ASQ, Property.ACQ):
            kept = self._values[which] & ~(0xFFFFFFFF << shift) if size_code == 0 else 0
            self._values[which] = kept | value << shift
        elif which is not Property.CSTS:
            raise Refusal(Status.CONNECT_INVALID_PARAMETERS)
        return Change.NONE

    def reset(self) -> None:
        """Controller reset is finished."""
        self._values[Property.CC] = 0
        self._values[Property.CSTS] = 0

    def shut_down(self) -> None:
        """Shutdown is finished."""
        self._values[Property.CSTS] |= _CSTS_SHST_DONE

    def _configure(self, value: int) -> Change:
        old = self._values[Property.CC]
        toggled = value ^ old
        if toggled & (_CC_AMS | _CC_MPS) or value & _CC_SHN == _CC_SHN:
            raise Refusal(Status.CONNECT_INVALID_PARAMETERS)
        self._values[Property.CC] = value
        if toggled & _CC_SHN and value & _CC_SHN:
            return Change.SHUTDOWN
        if toggled & _CC_EN:
            if not value & _CC_EN:
                return Change.RESET
            self._values[Property.CSTS] |= _CSTS_RDY
            return Change.ENABLE
        return Change.NONE

    @staticmethod
    def _find(offset: int, size_code: int) -> tuple[Property, int]:
        """The property at `offset` and how far to shift it; size code 0 is 4 bytes, 1 is 8."""
        size = {0: 4, 1: 8}.get(size_code)
        for which, width in _SIZES.items():
            if size is not None and which <= offset and offset + size <= which + width:
                return which, (offset - which) * 8
        raise Refusal(Status.CONNECT_INVALID_PARAMETERS)

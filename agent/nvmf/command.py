"""Submission and completion queue entries (NVM Express Base 2.0, section 3.3.3) and the numbers they carry."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from agent.nvmf import status as statuses

_SQE = struct.Struct("<BBHIQQQI3xBIIIIII")
_CQE = struct.Struct("<QHHHH")
SQE_BYTES = _SQE.size
CQE_BYTES = _CQE.size

SGL_IN_CAPSULE = 0x01
"""SGL Data Block descriptor, offset subtype: the data follows in the capsule."""
SGL_TRANSPORT = 0x5A
"""Transport SGL Data Block descriptor: the data comes or goes in data PDUs."""
PSDT_SGL = 0x40
"""Command flags: the data pointer is an SGL, the only kind allowed over fabrics."""

GLOBAL_NSID = 0xFFFFFFFF
DYNAMIC_CNTLID = 0xFFFF


class AdminOpcode(IntEnum):
    GET_LOG_PAGE = 0x02
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    KEEP_ALIVE = 0x18
    FABRICS = 0x7F


class IoOpcode(IntEnum):
    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class FabricsType(IntEnum):
    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04


class Property(IntEnum):
    """Controller properties by offset."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CRTO = 0x68


class Feature(IntEnum):
    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    KEEP_ALIVE_TIMER = 0x0F
    HOST_BEHAVIOR = 0x16
    HOST_IDENTIFIER = 0x81


class LogPage(IntEnum):
    SUPPORTED_PAGES = 0x00
    ERROR = 0x01
    HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMAND_EFFECTS = 0x05
    ANA = 0x0C
    FEATURE_EFFECTS = 0x12
    MANAGEMENT_EFFECTS = 0x13
    DISCOVERY = 0x70


class Cns(IntEnum):
    """What Identify asks for."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NAMESPACE_COMMAND_SET = 0x05
    CONTROLLER_COMMAND_SET = 0x06
    ACTIVE_NAMESPACES_COMMAND_SET = 0x07
    NAMESPACE_INDEPENDENT = 0x08
    COMMAND_SETS = 0x1C


class EventInfo(IntEnum):
    """Information of a notice event (type 2)."""

    NAMESPACE_ATTRIBUTE = 0x00
    ANA_CHANGE = 0x03
    DISCOVERY_LOG = 0xF0


EVENT_NOTICE = 2


@dataclass(slots=True)
class Command:
    """A submission queue entry."""

    opcode: int
    nsid: int = 0
    cid: int = 0
    flags: int = PSDT_SGL
    sgl_type: int = SGL_TRANSPORT
    sgl_address: int = 0
    sgl_length: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    def pack(self) -> bytes:
        return _SQE.pack(
            self.opcode, self.flags, self.cid, self.nsid, 0, 0, self.sgl_address, self.sgl_length, self.sgl_type,
            self.cdw10, self.cdw11, self.cdw12, self.cdw13, self.cdw14, self.cdw15,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Command:
        fields = _SQE.unpack_from(data, offset)
        opcode, flags, cid, nsid, _, _, address, length, kind, *cdws = fields
        return cls(opcode, nsid, cid, flags, kind, address, length, *cdws)

    @property
    def is_fabrics(self) -> bool:
        return self.opcode == AdminOpcode.FABRICS

    @property
    def fabrics_type(self) -> int:
        """FCTYPE, which lies where other commands have the low byte of NSID."""
        return self.nsid & 0xFF

    @property
    def transfer(self) -> int:
        """Direction of the data: the low bits of the opcode, 0 none, 1 to the controller, 2 to the host, 3 both."""
        return (self.fabrics_type if self.is_fabrics else self.opcode) & 3

    @property
    def starting_lba(self) -> int:
        return self.cdw10 | self.cdw11 << 32

    @property
    def block_count(self) -> int:
        """Number of logical blocks of Read, Write, Compare and Write Zeroes (0's based on the wire)."""
        return (self.cdw12 & 0xFFFF) + 1


@dataclass(slots=True)
class Completion:
    """A completion queue entry. `result` is the command-specific value of dwords 0 and 1."""

    status: int = statuses.Status.SUCCESS
    result: int = 0
    dnr: bool = False
    cid: int = 0
    sq_head: int = 0

    def pack(self) -> bytes:
        return _CQE.pack(self.result, self.sq_head, 0, self.cid, statuses.to_field(self.status, self.dnr))

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Completion:
        result, sq_head, _, cid, field = _CQE.unpack_from(data, offset)
        code, dnr = statuses.from_field(field)
        return cls(code, result, dnr, cid, sq_head)

"""PDUs of the TCP transport: their headers, digests and limits (NVMe TCP Transport 1.0, section 3.6).

`read_pdu` is the only place where bytes from the network are measured: whoever calls it sets the PDU types and the
amount of data that may come now, everything else is a ProtocolError that names what the peer did wrong.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from agent.nvmf.digest import DIGEST_BYTES, crc32c

_COMMON = struct.Struct("<BBBBI")
_IC = struct.Struct("<HBBI112x")
_DATA = struct.Struct("<HHII4x")
_TERM = struct.Struct("<HI10x")
COMMON_BYTES = _COMMON.size
TERM_DATA_MAX = 128
PAD_MAX = 128
"""Largest distance of the data from the header: CPDA and HPDA are at most 31, in units of 4 bytes, 0's based."""


class PduType(IntEnum):
    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


HEADER_BYTES: Mapping[PduType, int] = {
    PduType.IC_REQ: 128,
    PduType.IC_RESP: 128,
    PduType.H2C_TERM_REQ: 24,
    PduType.C2H_TERM_REQ: 24,
    PduType.CAPSULE_CMD: 72,
    PduType.CAPSULE_RESP: 24,
    PduType.H2C_DATA: 24,
    PduType.C2H_DATA: 24,
    PduType.R2T: 24,
}
_WITHOUT_DIGEST = {PduType.IC_REQ, PduType.IC_RESP, PduType.H2C_TERM_REQ, PduType.C2H_TERM_REQ}


class PduFlag(IntFlag):
    NONE = 0
    HEADER_DIGEST = 1
    DATA_DIGEST = 2
    LAST = 4
    """Last data PDU of a transfer."""
    SUCCESS = 8
    """C2HData: the command succeeded and no response capsule follows."""


class FatalError(IntEnum):
    """FES of a TermReq PDU (section 3.6.2.3)."""

    INVALID_HEADER = 1
    SEQUENCE = 2
    HEADER_DIGEST = 3
    OUT_OF_RANGE = 4
    LIMIT_EXCEEDED = 5
    UNSUPPORTED = 6


class ProtocolError(Exception):
    """The peer broke the protocol; the connection has to end with a TermReq that carries these."""

    def __init__(self, error: FatalError, message: str, offset: int = 0, header: bytes = b"") -> None:
        self.error = error
        self.offset = offset
        self.header = header
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Digests:
    """Which digests the two sides agreed on."""

    header: bool = False
    data: bool = False

    def to_bits(self) -> int:
        return self.header | self.data << 1

    @classmethod
    def from_bits(cls, bits: int) -> Digests:
        return cls(bool(bits & 1), bool(bits & 2))


NO_DIGESTS = Digests()


@dataclass(slots=True)
class Pdu:
    """A received PDU: whole header, data, and whether the data digest was right."""

    type: PduType
    flags: int
    header: bytes
    data: bytes = b""
    data_intact: bool = True


def encode(
    kind: PduType, specific: bytes, data: bytes | bytearray | memoryview = b"", *, flags: int = 0,
    digests: Digests = NO_DIGESTS, alignment: int = 1,
) -> list[bytes | bytearray | memoryview]:  # fmt: skip
    """Buffers of one PDU: `specific` is the header behind the common part, data starts at a multiple of `alignment`."""
    header_length = COMMON_BYTES + len(specific)
    with_header_digest = digests.header and kind not in _WITHOUT_DIGEST
    with_data_digest = digests.data and len(data) > 0 and kind not in _WITHOUT_DIGEST
    length = header_length + (DIGEST_BYTES if with_header_digest else 0)
    padding = -length % alignment if data else 0
    data_offset = length + padding if data else 0
    total = length + padding + len(data) + (DIGEST_BYTES if with_data_digest else 0)
    flags |= (PduFlag.HEADER_DIGEST if with_header_digest else 0) | (PduFlag.DATA_DIGEST if with_data_digest else 0)
    header = _COMMON.pack(kind, flags, header_length, data_offset, total) + specific
    if with_header_digest:
        header += crc32c(header)
    buffers: list[bytes | bytearray | memoryview] = [header + bytes(padding) if padding else header]
    if data:
        buffers.append(data)
    if with_data_digest:
        buffers.append(crc32c(data))
    return buffers


async def read_pdu(reader: asyncio.StreamReader, allowed: Mapping[PduType, int], digests: Digests = NO_DIGESTS) -> Pdu:
    """The next PDU, of a type in `allowed`, which gives the most data it may carry, in bytes.

    Raises ProtocolError, or asyncio.IncompleteReadError at the end of the stream.
    """
    common = await reader.readexactly(COMMON_BYTES)
    raw_kind, flags, header_length, data_offset, total = _COMMON.unpack(common)
    if raw_kind not in allowed:
        known = raw_kind in HEADER_BYTES
        fault = FatalError.SEQUENCE if known else FatalError.INVALID_HEADER
        raise ProtocolError(fault, f"unexpected PDU type {raw_kind:#04x}", 0, common)
    kind = PduType(raw_kind)
    if header_length != HEADER_BYTES[kind]:
        raise ProtocolError(FatalError.INVALID_HEADER, f"{kind.name} with header length {header_length}", 2, common)
    digested = digests.header and kind not in _WITHOUT_DIGEST
    fixed = header_length + (DIGEST_BYTES if digested else 0)
    if total < fixed or total > fixed + PAD_MAX + allowed[kind] + DIGEST_BYTES:
        raise ProtocolError(FatalError.INVALID_HEADER, f"{kind.name} with length {total}", 4, common)
    rest = await reader.readexactly(fixed - COMMON_BYTES)
    header = common + rest[: header_length - COMMON_BYTES]
    if digested and (not flags & PduFlag.HEADER_DIGEST or crc32c(header) != rest[header_length - COMMON_BYTES :]):
        raise ProtocolError(FatalError.HEADER_DIGEST, f"{kind.name} with a wrong header digest", 0, header)
    pdu = Pdu(kind, flags, header)
    if total > fixed:
        await _read_data(reader, pdu, (fixed, data_offset, total), allowed[kind], digests)
    return pdu


async def _read_data(
    reader: asyncio.StreamReader, pdu: Pdu, extent: tuple[int, int, int], limit: int, digests: Digests
) -> None:
    fixed, data_offset, total = extent
    if pdu.type in _WITHOUT_DIGEST:
        pdu.data = await reader.readexactly(total - fixed)
        return
    digest_length = DIGEST_BYTES if digests.data and pdu.flags & PduFlag.DATA_DIGEST else 0
    length = total - data_offset - digest_length
    if data_offset < fixed or length < 0:
        raise ProtocolError(FatalError.INVALID_HEADER, f"{pdu.type.name} with data offset {data_offset}", 3, pdu.header)
    if length > limit:
        raise ProtocolError(FatalError.LIMIT_EXCEEDED, f"{pdu.type.name} with {length} bytes of data", 4, pdu.header)
    if data_offset > fixed:
        await reader.readexactly(data_offset - fixed)
    pdu.data = await reader.readexactly(length)
    if digest_length:
        pdu.data_intact = await reader.readexactly(DIGEST_BYTES) == crc32c(pdu.data)
    elif digests.data and length:
        pdu.data_intact = False


@dataclass(frozen=True, slots=True)
class Initialization:
    """ICReq and ICResp: `alignment` is HPDA or CPDA, `limit` is MAXR2T or MAXH2CDATA."""

    version: int = 0
    alignment: int = 0
    digests: Digests = NO_DIGESTS
    limit: int = 0

    def pack(self) -> bytes:
        return _IC.pack(self.version, self.alignment, self.digests.to_bits(), self.limit)

    @classmethod
    def unpack(cls, header: bytes) -> Initialization:
        version, alignment, bits, limit = _IC.unpack_from(header, COMMON_BYTES)
        return cls(version, alignment, Digests.from_bits(bits), limit)


@dataclass(frozen=True, slots=True)
class Transfer:
    """The specific header of R2T, H2CData and C2HData: which part of which command's data."""

    cid: int
    tag: int
    offset: int
    length: int

    def pack(self) -> bytes:
        return _DATA.pack(self.cid, self.tag, self.offset, self.length)

    @classmethod
    def unpack(cls, header: bytes) -> Transfer:
        return cls(*_DATA.unpack_from(header, COMMON_BYTES))


def encode_termination(kind: PduType, error: ProtocolError) -> bytes:
    """A TermReq PDU, which ends the connection and shows the header that was wrong."""
    fes = _TERM.pack(error.error, error.offset)
    return b"".join(encode(kind, fes, error.header[:TERM_DATA_MAX]))


def describe_termination(pdu: Pdu) -> str:
    """What a received TermReq says, for the log."""
    fes, offset = _TERM.unpack_from(pdu.header, COMMON_BYTES)
    name = FatalError(fes).name if fes in set(FatalError) else "unknown"
    return f"{name.lower()} ({fes}), offset {offset}"

"""PDUs, queue entries and data structures as bytes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.nvmf import identify, logs
from agent.nvmf import pdu as pdus
from agent.nvmf.command import Command, Completion
from agent.nvmf.digest import crc32c
from agent.nvmf.identify import AnaState, IdentifyController, IdentifyNamespace
from agent.nvmf.logs import AnaGroup, DiscoveryEntry
from agent.nvmf.pdu import Digests, FatalError, Initialization, Pdu, PduFlag, PduType, ProtocolError, Transfer


async def _read(data: bytes, digests: Digests, limit: int = 1 << 20) -> Pdu:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await pdus.read_pdu(reader, {PduType.C2H_DATA: limit, PduType.H2C_DATA: limit}, digests)


def test_crc32c_of_the_standard() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(bytes(32)).hex() == "aa36918a"
    assert crc32c(b"\xff" * 32).hex() == "43aba862"
    assert crc32c(bytearray(range(32))).hex() == "4e79dd46"
    assert crc32c(memoryview(b"123456789")).hex() == "839206e3"


@given(
    data=st.binary(max_size=2000),
    digests=st.builds(Digests, st.booleans(), st.booleans()),
    alignment=st.integers(0, 31).map(lambda value: (value + 1) * 4),
    transfer=st.builds(
        Transfer, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
    ),
)
def test_a_pdu_survives_the_wire(data: bytes, digests: Digests, alignment: int, transfer: Transfer) -> None:
    buffers = pdus.encode(
        PduType.C2H_DATA, transfer.pack(), data, flags=PduFlag.LAST, digests=digests, alignment=alignment
    )
    wire = b"".join(bytes(buffer) for buffer in buffers)
    assert len(wire) == int.from_bytes(wire[4:8], "little")
    if data:
        assert wire[3] % alignment == 0
    pdu = asyncio.run(_read(wire, digests))
    assert (pdu.data, pdu.data_intact, Transfer.unpack(pdu.header)) == (data, True, transfer)
    assert pdu.flags & PduFlag.LAST


@given(position=st.integers(0, 5000), bit=st.integers(0, 7))
def test_with_digests_no_flipped_bit_goes_unnoticed(position: int, bit: int) -> None:
    digests = Digests(True, True)
    data = bytes(range(256)) * 2
    buffers = pdus.encode(PduType.C2H_DATA, Transfer(1, 0, 0, len(data)).pack(), data, digests=digests, alignment=64)
    wire = bytearray(b"".join(bytes(buffer) for buffer in buffers))
    place = position % len(wire)
    padding = range(28, 64)
    wire[place] ^= 1 << bit
    try:
        pdu = asyncio.run(_read(bytes(wire), digests))
    except (ProtocolError, asyncio.IncompleteReadError):
        return
    assert place in padding or not pdu.data_intact


async def test_more_data_than_allowed() -> None:
    buffers = pdus.encode(PduType.H2C_DATA, Transfer(1, 0, 0, 5000).pack(), bytes(5000))
    wire = b"".join(bytes(buffer) for buffer in buffers)
    with pytest.raises(ProtocolError) as error:
        await _read(wire, Digests(), limit=4999)
    assert error.value.error is FatalError.LIMIT_EXCEEDED


def test_initialization_as_the_standard_draws_it() -> None:
    """NVMe TCP Transport 1.0, figure 26: ICReq."""
    request = Initialization(digests=Digests(False, True), alignment=3, limit=7)
    wire = b"".join(bytes(part) for part in pdus.encode(PduType.IC_REQ, request.pack()))
    assert wire[:16] == bytes.fromhex("00 00 80 00 80000000 0000 03 02 07000000")
    assert len(wire) == 128
    assert Initialization.unpack(wire) == request


@given(st.builds(Command, *(st.integers(0, 2**bits - 1) for bits in (8, 32, 16, 8, 8, 64, 32, 32, 32, 32, 32, 32, 32))))
def test_commands_survive(command: Command) -> None:
    assert len(command.pack()) == 64
    assert Command.unpack(command.pack()) == command


def test_a_read_as_linux_sends_it() -> None:
    """8 blocks at LBA 0x123456789 of namespace 1, command 0x55, transport SGL of 32 KiB."""
    command = Command(2, 1, 0x55, sgl_length=32768, cdw10=0x23456789, cdw11=1, cdw12=7)
    wire = command.pack()
    assert wire[:8] == bytes.fromhex("02 40 5500 01000000")
    assert wire[24:40] == bytes.fromhex("0000000000000000 00800000 000000 5a")
    assert wire[40:52] == bytes.fromhex("89674523 01000000 07000000")
    assert (command.starting_lba, command.block_count, command.transfer) == (0x123456789, 8, 2)


@given(st.integers(0, 0x7FF), st.integers(0, 2**64 - 1), st.booleans(), st.integers(0, 65535), st.integers(0, 65535))
def test_completions_survive(status: int, result: int, dnr: bool, cid: int, head: int) -> None:
    completion = Completion(status, result, dnr, cid, head)
    assert len(completion.pack()) == 16
    assert Completion.unpack(completion.pack()) == completion


def test_structures_lie_where_the_standard_puts_them() -> None:
    controller = IdentifyController(serial="S", model="M", cntlid=0x1234, subnqn="nqn.x", namespaces=7).pack()
    assert controller[4:24] == b"S".ljust(20)
    assert controller[24:64] == b"M".ljust(40)
    assert controller[78:80] == b"\x34\x12"
    assert controller[516] == 7
    assert controller[768:1024] == b"nqn.x".ljust(256, b"\0")
    assert IdentifyController.unpack(controller).subnqn == "nqn.x"
    namespace = IdentifyNamespace(size=5, block_shift=12, nguid=b"n" * 16).pack()
    assert namespace[:8] == b"\5".ljust(8, b"\0")
    assert namespace[104:120] == b"n" * 16
    assert namespace[130] == 12
    assert len(controller) == len(namespace) == 4096
    with pytest.raises(ValueError, match="4096"):
        IdentifyNamespace.unpack(namespace[:100])


@given(st.lists(st.builds(AnaGroup, st.integers(1, 100), st.sampled_from(AnaState), st.just((1, 2, 3))), max_size=5))
def test_ana_pages_survive_and_cut_ones_are_noticed(groups: list[AnaGroup]) -> None:
    page = logs.pack_ana(groups)
    assert logs.unpack_ana(page) == groups
    if groups:
        with pytest.raises(ValueError, match="cut off"):
            logs.unpack_ana(page[:-1])


def test_discovery_pages_survive() -> None:
    entries = [DiscoveryEntry(subnqn="nqn.a", address="127.0.0.1", service="4420"), DiscoveryEntry(subnqn="nqn.b")]
    page = logs.pack_discovery(entries, 9)
    assert logs.unpack_discovery_header(page) == (9, 2)
    assert DiscoveryEntry.unpack(page[1024:]) == entries[0]
    assert len(page) == 3072


@given(st.binary(max_size=300))
def test_descriptors_of_any_bytes_end(data: bytes) -> None:
    assert sum(len(value) + 4 for _, value in identify.unpack_descriptors(data)) <= len(data)

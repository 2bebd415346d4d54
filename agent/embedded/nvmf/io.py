"""I/O commands of the embedded target's controllers (NVM Command Set 1.0, section 3), carried out on bdevs."""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Awaitable, Callable

from agent.embedded.bdev import IoFailure
from agent.embedded.nvmf.controller import Controller
from agent.embedded.nvmf.request import Refusal, Reply, Request
from agent.embedded.nvmf.subsystem import Namespace
from agent.nvmf.command import IoOpcode
from agent.nvmf.identify import AnaState, OptionalCommands
from agent.nvmf.status import Status

log = logging.getLogger(__name__)

_FUA = 1 << 30
_DSM_DEALLOCATE = 1 << 2
_RANGE = struct.Struct("<IIQ")
_FAILURES = {  # a full lvstore (ENOSPC) is an internal error, as any other failure: measured on SPDK v26.05
    errno.EROFS: (Status.WRITE_PROTECTED, False),
    errno.ENODEV: (Status.INVALID_NAMESPACE, True),
    errno.ENOTSUP: (Status.INVALID_OPCODE, True),
}


async def execute(controller: Controller, request: Request) -> Reply:
    """One command of an I/O queue; raises Refusal."""
    command = request.command
    if not controller.registers.enabled:
        raise Refusal(Status.COMMAND_SEQUENCE_ERROR)
    if command.is_fabrics:
        raise Refusal(Status.INVALID_OPCODE)
    namespace = controller.subsystem.namespaces.get(command.nsid)
    if namespace is None:
        raise Refusal(Status.INVALID_NAMESPACE, dnr=True)
    if controller.ana_state(namespace) is AnaState.INACCESSIBLE:
        raise Refusal(Status.ANA_INACCESSIBLE)
    masked = any(command.opcode == opcode for opcode, bit in _OPTIONAL if bit & controller.settings.masked)
    handler = None if masked else _HANDLERS.get(command.opcode)
    if handler is None or command.flags & 3:
        raise Refusal(Status.INVALID_OPCODE if handler is None else Status.INVALID_FIELD, dnr=True)
    namespace.begin()
    try:
        return await handler(controller, namespace, request)
    except IoFailure as failure:
        status, dnr = _FAILURES.get(failure.errno, (Status.INTERNAL_ERROR, False))
        log.warning("%s of bdev %s failed: %s", IoOpcode(command.opcode).name, namespace.bdev.name, failure)
        raise Refusal(status, dnr=dnr) from failure
    finally:
        namespace.end()


def _extent(namespace: Namespace, request: Request, *, with_data: bool = True) -> tuple[int, int]:
    """(offset, length) in bytes of the logical blocks that the command names; raises Refusal."""
    command, bdev = request.command, namespace.bdev
    if command.starting_lba + command.block_count > bdev.num_blocks:
        raise Refusal(Status.LBA_OUT_OF_RANGE)
    length = command.block_count * bdev.block_size
    if with_data and length > request.length:
        raise Refusal(Status.DATA_SGL_LENGTH_INVALID)
    return command.starting_lba * bdev.block_size, length


async def _read(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    offset, length = _extent(namespace, request)
    data = await namespace.bdev.read(offset, length)
    controller.reads += 1
    controller.bytes_read += length
    return Reply(data=data)


async def _write(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    offset, length = _extent(namespace, request)
    await namespace.bdev.write(offset, memoryview(request.data)[:length])
    if request.command.cdw12 & _FUA:
        await namespace.bdev.flush()
    controller.writes += 1
    controller.bytes_written += length
    return Reply()


async def _compare(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    offset, length = _extent(namespace, request)
    if await namespace.bdev.read(offset, length) != memoryview(request.data)[:length]:
        raise Refusal(Status.COMPARE_FAILURE)
    return Reply()


async def _flush(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    await namespace.bdev.flush()
    return Reply()


async def _write_zeroes(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    offset, length = _extent(namespace, request, with_data=False)
    shift = controller.subsystem.options.wzsl
    if shift and length > 4096 << shift:
        raise Refusal(Status.INVALID_FIELD, dnr=True)
    await namespace.bdev.write_zeroes(offset, length)
    if request.command.cdw12 & _FUA:
        await namespace.bdev.flush()
    return Reply()


async def _dataset_management(controller: Controller, namespace: Namespace, request: Request) -> Reply:
    count = (request.command.cdw10 & 0xFF) + 1
    bdev = namespace.bdev
    if count * _RANGE.size > len(request.data):
        raise Refusal(Status.DATA_SGL_LENGTH_INVALID)
    if not request.command.cdw11 & _DSM_DEALLOCATE:
        return Reply()
    ranges = [_RANGE.unpack_from(request.data, index * _RANGE.size) for index in range(count)]
    if any(lba + blocks > bdev.num_blocks for _, blocks, lba in ranges):
        raise Refusal(Status.LBA_OUT_OF_RANGE)
    for _, blocks, lba in ranges:
        if blocks:
            await bdev.unmap(lba * bdev.block_size, blocks * bdev.block_size)
    return Reply()


_HANDLERS: dict[int, Callable[[Controller, Namespace, Request], Awaitable[Reply]]] = {
    IoOpcode.READ: _read,
    IoOpcode.WRITE: _write,
    IoOpcode.FLUSH: _flush,
    IoOpcode.COMPARE: _compare,
    IoOpcode.WRITE_ZEROES: _write_zeroes,
    IoOpcode.DATASET_MANAGEMENT: _dataset_management,
}

_OPTIONAL = (
    (IoOpcode.COMPARE, OptionalCommands.COMPARE),
    (IoOpcode.WRITE_ZEROES, OptionalCommands.WRITE_ZEROES),
    (IoOpcode.DATASET_MANAGEMENT, OptionalCommands.DATASET_MANAGEMENT),
)

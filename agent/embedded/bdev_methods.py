"""RPC methods that make, list and remove bdevs: malloc, AIO, uring, `bdev_get_bdevs`, examine."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec

from agent.embedded.bdev import Bdev, BdevRegistry, NameTaken, RegistryEvent
from agent.embedded.filebdev import AioBdev, FdBdev, MallocBdev, RegularFileBdev, UringBdev
from agent.embedded.rpc import I32, INTERNAL_ERROR, U32, U64, Methods, NoParams, Params, RpcFault

URING_FAULT = RpcFault(INTERNAL_ERROR, "Unable to create URING bdev.")
BLOCK_ALIGNMENT = 512

Examine = Callable[[Bdev], Awaitable[None]]
F = TypeVar("F", bound=FdBdev)


class NamedParams(Params):
    name: str


class MallocCreateParams(Params):
    block_size: U32
    num_blocks: U64
    name: str | None = None
    uuid: UUID | None = None
    optimal_io_boundary: U32 = 0
    md_size: U32 = 0
    md_interleave: bool = False
    dif_type: I32 = 0
    dif_is_head_of_md: bool = False
    physical_block_size: U32 = 0
    dif_pi_format: U32 = 0
    numa_id: I32 = -1


class AioCreateParams(Params):
    name: str
    filename: str
    block_size: U32 = 0
    readonly: bool = False
    fallocate: bool = False
    uuid: UUID | None = None
    nowait: bool = False


class UringCreateParams(Params):
    filename: str
    name: str
    block_size: U32 = 0
    uuid: UUID | None = None


class GetBdevsParams(Params):
    name: str | None = None
    timeout: U64 = 0
    """Milliseconds to wait for the bdev to appear."""


def require(registry: BdevRegistry, name: str) -> Bdev:
    """The bdev, or -19 as the real target answers."""
    bdev = registry.get(name)
    if bdev is None:
        raise RpcFault.no_device()
    return bdev


class BdevMethods:
    """Handlers; `examine` is awaited for each new bdev before its creation is answered, as the real target does."""

    def __init__(self, registry: BdevRegistry, examine: Examine) -> None:
        self._registry = registry
        self._examine = examine
        self._examining: set[asyncio.Future[None]] = set()
        self._malloc_numbers = itertools.count()

    def register(self, methods: Methods) -> None:
        methods.add("bdev_malloc_create", MallocCreateParams, self.malloc_create)
        methods.add("bdev_malloc_delete", NamedParams, self._deleter(MallocBdev))
        methods.add("bdev_aio_create", AioCreateParams, self.aio_create)
        methods.add("bdev_aio_delete", NamedParams, self._deleter(AioBdev))
        methods.add("bdev_aio_rescan", NamedParams, self._rescanner(AioBdev))
        methods.add("bdev_uring_create", UringCreateParams, self.uring_create)
        methods.add("bdev_uring_delete", NamedParams, self._deleter(UringBdev))
        methods.add("bdev_uring_rescan", NamedParams, self._rescanner(UringBdev))
        methods.add("bdev_get_bdevs", GetBdevsParams, self.get_bdevs)
        methods.add("bdev_examine", NamedParams, self.examine_one)
        methods.add("bdev_wait_for_examine", NoParams, self.wait_for_examine)

    async def malloc_create(self, params: MallocCreateParams) -> str:
        if (
            params.num_blocks == 0
            or params.block_size % BLOCK_ALIGNMENT
            or params.physical_block_size % BLOCK_ALIGNMENT
        ):
            raise RpcFault(-errno.EINVAL)
        if params.md_size or params.dif_type:
            raise RpcFault(-errno.EINVAL, "The embedded target has no metadata or protection information")
        size = params.num_blocks * params.block_size
        if not 0 < size < 2**63:
            raise RpcFault(-errno.ENOMEM)
        name = params.name if params.name is not None else f"Malloc{next(self._malloc_numbers)}"
        bdev = MallocBdev(name, str(params.uuid or uuid4()), params.block_size, params.num_blocks)
        return await self._publish(bdev)

    async def aio_create(self, params: AioCreateParams) -> str:
        uuid = str(params.uuid) if params.uuid else None
        bdev = AioBdev(params.name, params.filename, params.block_size, uuid, readonly=params.readonly)
        return await self._publish(bdev)

    async def uring_create(self, params: UringCreateParams) -> str:
        uuid = str(params.uuid) if params.uuid else None
        try:
            bdev = UringBdev(params.name, params.filename, params.block_size, uuid)
        except RpcFault as fault:
            if fault.code == -errno.ENOTSUP:
                raise
            raise RpcFault(URING_FAULT.code, URING_FAULT.message) from fault
        try:
            return await self._publish(bdev)
        except RpcFault as fault:
            raise RpcFault(URING_FAULT.code, URING_FAULT.message) from fault

    async def _publish(self, bdev: FdBdev) -> str:
        """Register and examine. Raises RpcFault when the name cannot be used."""
        try:
            if not bdev.name:
                raise RpcFault(-errno.EINVAL)
            self._registry.add(bdev)
        except NameTaken as error:
            bdev.close()
            raise RpcFault(-errno.EEXIST) from error
        except RpcFault:
            bdev.close()
            raise
        await self._run_examine(bdev)
        return bdev.name

    async def _run_examine(self, bdev: Bdev) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._examining.add(done)
        try:
            await self._examine(bdev)
        finally:
            self._examining.discard(done)
            done.set_result(None)

    def _deleter(self, kind: type[F]) -> Callable[[NamedParams], Awaitable[bool]]:
        async def delete(params: NamedParams) -> bool:
            bdev = require(self._registry, params.name)
            if not isinstance(bdev, kind):
                raise RpcFault.no_device()
            self._registry.remove(bdev.name)
            bdev.close()
            return True

        return delete

    def _rescanner(self, kind: type[RegularFileBdev]) -> Callable[[NamedParams], Awaitable[bool]]:
        async def rescan(params: NamedParams) -> bool:
            bdev = require(self._registry, params.name)
            if not isinstance(bdev, kind):
                raise RpcFault.no_device()
            if bdev.in_use and bdev.size_now() < bdev.size_bytes:  # spdk_bdev_notify_blockcnt_change
                raise RpcFault(-errno.EBUSY)
            bdev.rescan(self._registry)
            return True

        return rescan

    async def get_bdevs(self, params: GetBdevsParams) -> list[dict[str, Any]] | msgspec.Raw:
        if params.name is None:
            return [bdev.info() for bdev in self._registry.all()]
        bdev = self._registry.get(params.name)
        if bdev is None and params.timeout:
            bdev = await self._appearance(params.name, params.timeout / 1000)
        if bdev is None:
            raise RpcFault.no_device()
        return [bdev.info()]

    async def _appearance(self, name: str, timeout_s: float) -> Bdev | None:
        """The bdev once it is registered; RpcFault -110 when it is not in time."""
        seen = asyncio.Event()
        cancel = self._registry.on_change(lambda event, _: seen.set() if event is RegistryEvent.ADDED else None)
        try:
            async with asyncio.timeout(timeout_s):
                while (bdev := self._registry.get(name)) is None:
                    seen.clear()
                    await seen.wait()
        except TimeoutError as error:
            raise RpcFault(-errno.ETIMEDOUT) from error
        finally:
            cancel()
        return bdev

    async def examine_one(self, params: NamedParams) -> bool:
        """Refused as by the real target with automatic examination, which is its default and our only mode."""
        raise RpcFault(-errno.EINVAL)

    async def wait_for_examine(self, params: NoParams) -> bool:
        if self._examining:
            await asyncio.wait(self._examining)
        return True

"""Calls about the target's own NVMe driver: attach the namespaces of a remote subsystem or of a disk as bdevs."""

from __future__ import annotations

import base64
import binascii
import errno
import struct
from functools import partial
from typing import Any

import msgspec

from agent.errors import RpcError
from agent.host.nvme_admin import Answer, Command, Send
from agent.spdk.answers import given, read
from agent.spdk.client import Rpc
from agent.spdk.nvmf import TRTYPE, Address


class PathInfo(msgspec.Struct, frozen=True):
    """One connection of a controller. `state`: enabled, resetting, reconnect_is_delayed, failed, deleting, …"""

    state: str
    trid: Address
    cntlid: int = 0


class ControllerInfo(msgspec.Struct, frozen=True):
    """bdev_nvme_get_controllers."""

    name: str
    ctrlrs: tuple[PathInfo, ...] = ()


class LossPolicy(msgspec.Struct, frozen=True):
    """What happens when the connection breaks, in seconds: the design's measured values.

    I/O fails from `fast_io_fail` on, reconnecting is tried every `reconnect_delay`, the bdevs go at `ctrlr_loss`.
    """

    ctrlr_loss_timeout_sec: int = 4
    reconnect_delay_sec: int = 1
    fast_io_fail_timeout_sec: int = 2


async def attach(
    rpc: Rpc,
    name: str,
    address: str,
    port: int,
    subnqn: str,
    *,
    hostnqn: str | None = None,
    loss: LossPolicy | None = None,
) -> list[str]:
    """Connect; returns the names of the bdevs, `<name>n<nsid>`. -5 refused or unreachable, -114 already attached.

    `loss` defaults to `LossPolicy()`. The answer can take as long as the remote one takes to answer Connect.
    """
    loss = loss or LossPolicy()
    params = given(
        name=name,
        trtype=TRTYPE,
        adrfam="IPv6" if ":" in address else "IPv4",
        traddr=address,
        trsvcid=str(port),
        subnqn=subnqn,
        hostnqn=hostnqn,
        ctrlr_loss_timeout_sec=loss.ctrlr_loss_timeout_sec,
        reconnect_delay_sec=loss.reconnect_delay_sec,
        fast_io_fail_timeout_sec=loss.fast_io_fail_timeout_sec,
    )
    return read("bdev_nvme_attach_controller", await rpc.call("bdev_nvme_attach_controller", params), list[str])


async def attach_pcie(rpc: Rpc, name: str, pci_address: str, *, timeout_s: float | None = None) -> list[str]:
    """Take over a controller of this machine; returns the names of the bdevs, `<name>n<nsid>`.

    The kernel's vfio-pci or uio_pci_generic has to have it, since before the target was started at least once: DPDK
    looks for vfio at its start only. -19 not there or not to be had, -114 already attached.
    """
    params = {"name": name, "trtype": "PCIe", "traddr": pci_address}
    result = await rpc.call("bdev_nvme_attach_controller", params, timeout_s=timeout_s)
    return read("bdev_nvme_attach_controller", result, list[str])


class HealthInfo(msgspec.Struct, frozen=True):
    """bdev_nvme_get_controller_health_info: NVMe's SMART and health log page (NVM Express Base 2.0, 5.16.1.3).

    `critical_warning` is its byte of flags. A temperature below 0 °C comes as a number near 2**64.
    """

    model_number: str = ""
    serial_number: str = ""
    critical_warning: int = 0
    temperature_celsius: int = 0
    available_spare_percentage: int = 100
    available_spare_threshold_percentage: int = 0
    percentage_used: int = 0
    power_on_hours: int = 0
    unsafe_shutdowns: int = 0
    media_errors: int = 0


async def health(rpc: Rpc, name: str) -> HealthInfo:
    """The health of a controller by its own account. -19 absent."""
    method = "bdev_nvme_get_controller_health_info"
    return read(method, await rpc.call(method, {"name": name}), HealthInfo)


async def detach(rpc: Rpc, name: str) -> None:
    """Disconnect and remove the bdevs. -19 absent."""
    await rpc.call("bdev_nvme_detach_controller", {"name": name})


async def get(rpc: Rpc, name: str) -> ControllerInfo | None:
    """The controller, None when there is none: bdev_nvme_get_controllers answers -22 to an unknown name."""
    try:
        result = await rpc.call("bdev_nvme_get_controllers", {"name": name})
    except RpcError as error:
        if error.code in (-errno.EINVAL, -errno.ENODEV):
            return None
        raise
    found = read("bdev_nvme_get_controllers", result, list[ControllerInfo])
    return found[0] if found else None


async def list_all(rpc: Rpc) -> list[ControllerInfo]:
    """All attached controllers."""
    return read("bdev_nvme_get_controllers", await rpc.call("bdev_nvme_get_controllers"), list[ControllerInfo])


class _Completion(msgspec.Struct, frozen=True):
    """bdev_nvme_send_cmd: both as base64url, `cpl` the 16 bytes of the completion (NVM Express Base 2.0, 3.3.3.2)."""

    cpl: str
    data: str = ""


_COMMAND = struct.Struct("<B3xI32x6I")
"""Opcode, NSID, then dwords 10 to 15, of the 64 bytes of a submission queue entry (figure 87)."""
_COMPLETION = struct.Struct("<I10xH")
_FLUSH = 0x00


async def send(rpc: Rpc, name: str, command: Command) -> Answer:
    """Send a controller that the target drives an administrative command. -32602 absent."""
    return await _send(rpc, name, "admin", command)


def to_controller(rpc: Rpc, name: str) -> Send:
    """The way to a controller that the target drives."""
    return partial(send, rpc, name)


async def flush(rpc: Rpc, name: str, nsid: int) -> None:
    """Have a namespace write out what its controller keeps back. RpcError with the status when it does not."""
    answer = await _send(rpc, name, "io", Command(_FLUSH, nsid=nsid))
    if answer.status:
        raise RpcError("bdev_nvme_send_cmd", answer.status, f"{name}n{nsid} does not flush (NVMe status)")


async def _send(rpc: Rpc, name: str, kind: str, command: Command) -> Answer:
    entry = _COMMAND.pack(command.opcode, command.nsid, command.cdw10, command.cdw11, 0, 0, 0, 0)
    params: dict[str, Any] = {
        "name": name,
        "cmd_type": kind,
        "data_direction": "c2h" if command.reads else "h2c",
        "cmdbuf": base64.urlsafe_b64encode(entry).decode(),
    }
    if command.reads:
        params["data_len"] = command.reads
    method = "bdev_nvme_send_cmd"
    found = read(method, await rpc.call(method, params), _Completion)
    try:
        result, status = _COMPLETION.unpack(base64.urlsafe_b64decode(found.cpl))
        return Answer(status >> 1 & 0x7FF, result, base64.urlsafe_b64decode(found.data))
    except (struct.error, binascii.Error) as error:
        raise RpcError(method, 0, f"the answer cannot be read: {error}") from error

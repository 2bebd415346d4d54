"""JSON-RPC: `bdev_nvme_attach_controller` and its relatives."""

from __future__ import annotations

import errno
import uuid
from typing import Any

from agent.embedded.bdev import BdevRegistry
from agent.embedded.nvmf.remote import Path, RemoteController, Resilience
from agent.embedded.rpc import INTERNAL_ERROR, Methods, Params, RpcFault
from agent.errors import QuarryError
from agent.nvmf.pdu import Digests

_INVALID = RpcFault(-errno.EINVAL)
_FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6"}


class AttachController(Params, kw_only=True):
    name: str
    trtype: str
    traddr: str
    adrfam: str = "IPv4"
    trsvcid: str = ""
    subnqn: str = ""
    hostnqn: str = ""
    priority: str | None = None
    hostaddr: str | None = None
    hostsvcid: str | None = None
    prchk_reftag: bool = False
    prchk_guard: bool = False
    hdgst: bool = False
    ddgst: bool = False
    fabrics_connect_timeout_us: int | None = None
    multipath: str = "multipath"
    num_io_queues: int | None = None
    ctrlr_loss_timeout_sec: int | None = None
    reconnect_delay_sec: int | None = None
    fast_io_fail_timeout_sec: int | None = None
    psk: str | None = None
    max_bdevs: int | None = None
    dhchap_key: str | None = None
    dhchap_ctrlr_key: str | None = None
    allow_unrecognized_csi: bool = False
    multipath_opts: dict[str, Any] | None = None


class DetachController(Params, kw_only=True):
    name: str
    trtype: str | None = None
    traddr: str | None = None
    adrfam: str | None = None
    trsvcid: str | None = None
    subnqn: str | None = None
    hostaddr: str | None = None
    hostsvcid: str | None = None


class GetControllers(Params):
    name: str | None = None


class NamedController(Params):
    name: str


class SetOptions(Params, forbid_unknown_fields=False, kw_only=True):
    """Only what concerns the loss of a connection has an effect; the rest is about SPDK's own driver."""

    ctrlr_loss_timeout_sec: int = 0
    reconnect_delay_sec: int = 0
    fast_io_fail_timeout_sec: int = 0


class BdevNvmeMethods:
    """The attached controllers by name."""

    def __init__(self, bdevs: BdevRegistry) -> None:
        self._bdevs = bdevs
        self._controllers: dict[str, RemoteController] = {}
        self._defaults = Resilience()
        self._hostnqn = f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"

    def register(self, methods: Methods) -> None:
        methods.add("bdev_nvme_attach_controller", AttachController, self.attach)
        methods.add("bdev_nvme_detach_controller", DetachController, self.detach)
        methods.add("bdev_nvme_get_controllers", GetControllers, self.get)
        methods.add("bdev_nvme_set_options", SetOptions, self.set_options)
        methods.add(
            "bdev_nvme_get_controller_health_info",
            NamedController,
            self.health,
            RpcFault(INTERNAL_ERROR, "Invalid parameters"),
        )

    async def close(self) -> None:
        """Detach everything."""
        controllers, self._controllers = list(self._controllers.values()), {}
        for controller in controllers:
            await controller.detach()

    async def attach(self, params: AttachController) -> list[str]:
        path, resilience = self._path(params), self._resilience(params)
        if params.max_bdevs == 0:
            raise RpcFault(-errno.EINVAL, "max_bdevs cannot be zero")
        existing = self._controllers.get(params.name)
        if existing is not None:
            raise _conflict(params, path, existing)
        if not resilience.consistent:
            raise _INVALID
        remote = RemoteController(params.name, path, resilience, self._bdevs, self._forget)
        self._controllers[params.name] = remote
        try:
            return await remote.attach()
        except (QuarryError, ValueError) as error:
            self._drop(remote)
            await remote.detach()
            raise RpcFault(-errno.EIO) from error
        except BaseException:
            self._drop(remote)
            raise

    async def detach(self, params: DetachController) -> bool:
        remote = self._controllers.get(params.name)
        if remote is None:
            raise RpcFault.no_device()
        trid = remote.describe_path()
        wanted = {"traddr": params.traddr, "trsvcid": params.trsvcid, "subnqn": params.subnqn}
        if any(value not in (None, trid[key]) for key, value in wanted.items()):
            raise RpcFault(-errno.ENXIO)
        self._forget(params.name)
        await remote.detach()
        return True

    async def get(self, params: GetControllers) -> list[dict[str, Any]]:
        if params.name is not None and params.name not in self._controllers:
            raise RpcFault(-errno.EINVAL, f"Controller {params.name} does not exist")
        names = list(self._controllers) if params.name is None else [params.name]
        return [{"name": name, "ctrlrs": [self._controllers[name].describe()]} for name in names]

    async def set_options(self, params: SetOptions) -> bool:
        if self._controllers:
            raise RpcFault(-errno.EPERM, "RPC not permitted with nvme controllers already attached")
        defaults = Resilience(
            params.ctrlr_loss_timeout_sec, params.reconnect_delay_sec, params.fast_io_fail_timeout_sec
        )
        if not defaults.consistent:
            raise _INVALID
        self._defaults = defaults
        return True

    async def health(self, params: NamedController) -> dict[str, Any]:
        remote = self._controllers.get(params.name)
        if remote is None:
            raise RpcFault(INTERNAL_ERROR, "Device not found")
        controller = remote.controller
        if controller is None:
            raise RpcFault(INTERNAL_ERROR, "Internal error.")
        try:
            health = await controller.health()
        except QuarryError as error:
            raise RpcFault(INTERNAL_ERROR, "Internal error.") from error
        info = controller.info
        return {
            "model_number": info.model,
            "serial_number": info.serial,
            "firmware_revision": info.firmware,
            "traddr": remote.path.address,
            "critical_warning": health.critical_warning,
            "temperature_celsius": (health.temperature - 273) % (1 << 64),
            "available_spare_percentage": health.available_spare,
            "available_spare_threshold_percentage": health.spare_threshold,
            "percentage_used": health.percentage_used,
            "data_units_read": health.data_units_read,
            "data_units_written": health.data_units_written,
            "host_read_commands": health.host_reads,
            "host_write_commands": health.host_writes,
            "controller_busy_time": health.busy_minutes,
            "power_cycles": health.power_cycles,
            "power_on_hours": health.power_on_hours,
            "unsafe_shutdowns": health.unsafe_shutdowns,
            "media_errors": health.media_errors,
            "num_err_log_entries": health.error_log_entries,
            "warning_temperature_time_minutes": health.warning_minutes,
            "critical_composite_temperature_time_minutes": health.critical_minutes,
        }

    def _drop(self, remote: RemoteController) -> None:
        """Forget it, unless it was detached meanwhile and another one has its name."""
        if self._controllers.get(remote.name) is remote:
            self._forget(remote.name)

    def _forget(self, name: str) -> None:
        self._controllers.pop(name, None)

    def _path(self, params: AttachController) -> Path:
        family = _FAMILIES.get(params.adrfam.lower())
        if family is None:
            raise RpcFault(-errno.EINVAL, f"Failed to parse adrfam: {params.adrfam}")
        if params.trtype.upper() != "TCP":
            raise RpcFault(-errno.EINVAL, f"Failed to parse trtype: {params.trtype}")
        service_ok = params.trsvcid.isdecimal() and 0 < int(params.trsvcid) < 65536
        if not service_ok or not params.subnqn or len(params.subnqn) > 223 or len(params.hostnqn) > 223:
            raise _INVALID
        if params.psk or params.dhchap_key or params.dhchap_ctrlr_key or params.num_io_queues == 0:
            raise _INVALID
        hostnqn = params.hostnqn or self._hostnqn
        digests = Digests(params.hdgst, params.ddgst)
        return Path(params.traddr, params.trsvcid, family, params.subnqn, hostnqn, digests)

    def _resilience(self, params: AttachController) -> Resilience:
        given = (params.ctrlr_loss_timeout_sec, params.reconnect_delay_sec, params.fast_io_fail_timeout_sec)
        default = self._defaults
        defaults = (default.ctrlr_loss_timeout_s, default.reconnect_delay_s, default.fast_io_fail_timeout_s)
        return Resilience(*(new if new is not None else old for new, old in zip(given, defaults, strict=True)))


def _conflict(params: AttachController, path: Path, existing: RemoteController) -> RpcFault:
    """What the real target answers when the name is taken; more than one path is not supported here."""
    have = existing.path
    name = params.name
    if params.multipath == "disable":
        return RpcFault(-errno.EALREADY, f"A controller named {name} already exists and multipath is disabled")
    if (path.address, path.service) == (have.address, have.service):
        message = f"A controller named {name} already exists with the specified network path"
        return RpcFault(-errno.EALREADY, message)
    if path.subnqn != have.subnqn:
        message = f"A controller named {name} already exists, but uses a different subnqn ({have.subnqn})"
        return RpcFault(-errno.EINVAL, message)
    if path.hostnqn != have.hostnqn:
        message = f"A controller named {name} already exists, but uses a different hostnqn ({have.hostnqn})"
        return RpcFault(-errno.EINVAL, message)
    return RpcFault(-errno.EINVAL, "The embedded target connects to one path only")

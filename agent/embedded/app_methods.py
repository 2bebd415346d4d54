"""RPC methods about the target itself: version, methods, threads, notifications, keys, and the frontends it lacks."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal, NoReturn

from agent.embedded.bdev import Bdev, BdevRegistry, RegistryEvent
from agent.embedded.bdev_methods import NamedParams, require
from agent.embedded.rpc import (
    INTERNAL_ERROR,
    INVALID_PARAMETERS,
    U32,
    U64,
    U64_MAX,
    Methods,
    NoParams,
    Params,
    RpcFault,
)
from agent.embedded.traffic import TICK_RATE

VERSION = {
    "version": "SPDK v26.05 (quarry embedded target)",
    "fields": {"major": 26, "minor": 5, "patch": 0, "suffix": "-embedded", "commit": "embedded"},
}

STARTUP_ONLY = (
    "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter and then "
    "issue this RPC before the framework_start_init RPC."
)
STARTUP_METHODS = ("framework_start_init", "bdev_set_options", "iobuf_set_options", "accel_set_options")

NOTIFICATION_TYPES = ("fsdev_register", "fsdev_unregister", *(event.value for event in RegistryEvent))
NOTIFICATIONS_KEPT = 1024
CONTEXT_CHARS = 127
THREAD_NAMES = ("app_thread", "nvmf_tgt_poll_group_000")


class AnyParams(Params, forbid_unknown_fields=False):
    """For methods that are refused whatever their parameters are."""


class GetMethodsParams(Params):
    current: bool = False
    include_aliases: bool = False


class KillParams(Params):
    sig_name: Literal["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"]


class NotificationsParams(Params):
    id: U64 = 0
    max: U64 = U64_MAX


class AddKeyParams(Params):
    name: str
    path: str


class UblkDisksParams(Params):
    ublk_id: U32 | None = None


class NbdDisksParams(Params):
    nbd_device: str | None = None


class NbdStartParams(Params):
    bdev_name: str
    nbd_device: str | None = None


class AppMethods:
    """Version, methods and threads."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._started = time.monotonic_ns()

    def register(self) -> None:
        add = self._methods.add
        add(
            "spdk_get_version",
            NoParams,
            self.version,
            no_params_message="spdk_get_version method requires no parameters",
        )
        add("rpc_get_methods", GetMethodsParams, self.get_methods)
        add("framework_wait_init", NoParams, self.wait_init)
        add("framework_get_reactors", NoParams, self.reactors)
        add("thread_get_stats", NoParams, self.threads)
        add("thread_get_pollers", NoParams, self.pollers)
        add("iobuf_get_stats", NoParams, self.iobuf)
        add("spdk_kill_instance", KillParams, self.kill, INVALID_PARAMETERS)
        for name in STARTUP_METHODS:
            add(name, AnyParams, self.startup_only)

    async def version(self, params: NoParams) -> dict[str, Any]:
        return VERSION

    async def get_methods(self, params: GetMethodsParams) -> list[str]:
        names = self._methods.names()
        return [name for name in names if not (params.current and name in STARTUP_METHODS)]

    async def wait_init(self, params: NoParams) -> bool:
        return True

    async def startup_only(self, params: AnyParams) -> NoReturn:
        raise RpcFault(-1, STARTUP_ONLY)

    async def reactors(self, params: NoParams) -> dict[str, Any]:
        busy, idle = self._busy_idle()
        times = os.times()
        threads = [
            {"name": name, "id": number, "cpumask": "1", "elapsed": busy + idle}
            for number, name in enumerate(THREAD_NAMES, 1)
        ]
        reactor = {
            "lcore": 0,
            "numa_id": 0,
            "tid": os.getpid(),
            "busy": busy,
            "idle": idle,
            "in_interrupt": True,
            "irq": 0,
            "sys": int(times.system * 100),
            "usr": int(times.user * 100),
            "lw_threads": threads,
        }
        return {"tick_rate": TICK_RATE, "pid": os.getpid(), "reactors": [reactor]}

    async def threads(self, params: NoParams) -> dict[str, Any]:
        busy, idle = self._busy_idle()
        threads = [
            {
                "name": name,
                "id": number,
                "cpumask": "1",
                "busy": busy if number == 1 else 0,
                "idle": idle if number == 1 else busy + idle,
                "active_pollers_count": 0,
                "timed_pollers_count": 0,
                "paused_pollers_count": 0,
            }
            for number, name in enumerate(THREAD_NAMES, 1)
        ]
        return {"tick_rate": TICK_RATE, "threads": threads}

    async def pollers(self, params: NoParams) -> dict[str, Any]:
        """Nothing is polled here: an event loop waits."""
        none: dict[str, list[Any]] = {"active_pollers": [], "timed_pollers": [], "paused_pollers": []}
        threads = [{"name": name, "id": number, **none} for number, name in enumerate(THREAD_NAMES, 1)]
        return {"tick_rate": TICK_RATE, "threads": threads}

    def _busy_idle(self) -> tuple[int, int]:
        """Ticks since the start that this process computed, and that it waited."""
        busy = time.process_time_ns()
        return busy, max(0, time.monotonic_ns() - self._started - busy)

    async def iobuf(self, params: NoParams) -> list[dict[str, Any]]:
        """There are no buffer pools; the shape is the real one's."""
        pool = {"cache": 0, "main": 0, "retry": 0, "cache_size": 0}
        return [{"module": module, "small_pool": pool, "large_pool": pool} for module in ("accel", "bdev")]

    async def kill(self, params: KillParams) -> bool:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.Signals[params.sig_name])
        return True


class NotificationMethods:
    """`notify_get_notifications`: what happened to bdevs, the last 1024 events."""

    def __init__(self, registry: BdevRegistry) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=NOTIFICATIONS_KEPT)
        self._numbers = itertools.count()
        registry.on_change(self._note)

    def register(self, methods: Methods) -> None:
        methods.add("notify_get_types", NoParams, self.types)
        methods.add("notify_get_notifications", NotificationsParams, self.notifications)

    def _note(self, event: RegistryEvent, bdev: Bdev) -> None:
        self._events.append({"type": event.value, "ctx": bdev.name[:CONTEXT_CHARS], "id": next(self._numbers)})

    async def types(self, params: NoParams) -> list[str]:
        return list(NOTIFICATION_TYPES)

    async def notifications(self, params: NotificationsParams) -> list[dict[str, Any]]:
        wanted = (event for event in self._events if event["id"] >= params.id)
        return list(itertools.islice(wanted, min(params.max, NOTIFICATIONS_KEPT)))


class KeyringMethods:
    """`keyring_file_*`: names for key files, whose content is not read here."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def register(self, methods: Methods) -> None:
        methods.add("keyring_get_keys", NoParams, self.keys)
        methods.add("keyring_file_add_key", AddKeyParams, self.add)
        methods.add("keyring_file_remove_key", NamedParams, self.remove)

    async def add(self, params: AddKeyParams) -> bool:
        path = Path(params.path)
        if not path.is_absolute():
            raise RpcFault(-errno.EPERM)
        try:
            mode = path.stat().st_mode  # noqa: ASYNC240 - one stat of a local file
        except OSError as error:
            raise RpcFault(-(error.errno or errno.EIO)) from error
        if mode & 0o077:
            raise RpcFault(-errno.EPERM)
        if params.name in self._keys:
            raise RpcFault(-errno.EEXIST)
        self._keys[params.name] = params.path
        return True

    async def remove(self, params: NamedParams) -> bool:
        if self._keys.pop(params.name, None) is None:
            raise RpcFault(-errno.ENOKEY)
        return True

    async def keys(self, params: NoParams) -> list[dict[str, Any]]:
        rest = {"module": "keyring_file", "removed": False, "probed": False, "refcnt": 1}
        return [{"name": name, **rest, "path": path} for name, path in self._keys.items()]


class AbsentFrontends:
    """ublk and NBD, answered as by a real target on a kernel without these drivers."""

    def __init__(self, registry: BdevRegistry) -> None:
        self._registry = registry

    def register(self, methods: Methods) -> None:
        for name in ("ublk_create_target", "ublk_destroy_target"):
            methods.add(name, AnyParams, self.no_driver)
        for name in ("ublk_start_disk", "ublk_stop_disk", "ublk_recover_disk", "nbd_stop_disk"):
            methods.add(name, AnyParams, self.no_device)
        methods.add("ublk_get_disks", UblkDisksParams, self.ublk_disks)
        methods.add("nbd_get_disks", NbdDisksParams, self.nbd_disks)
        methods.add("nbd_start_disk", NbdStartParams, self.nbd_start)

    async def no_driver(self, params: AnyParams) -> NoReturn:
        raise RpcFault(INTERNAL_ERROR, "No such file or directory")

    async def no_device(self, params: AnyParams) -> NoReturn:
        raise RpcFault.no_device()

    async def ublk_disks(self, params: UblkDisksParams) -> list[Any]:
        if params.ublk_id is not None:
            raise RpcFault.no_device()
        return []

    async def nbd_disks(self, params: NbdDisksParams) -> list[Any]:
        if params.nbd_device is not None:
            raise RpcFault.no_device()
        return []

    async def nbd_start(self, params: NbdStartParams) -> NoReturn:
        require(self._registry, params.bdev_name)
        if params.nbd_device is None:
            raise RpcFault(-errno.ENODEV, "nbd device not found")
        if not params.nbd_device.startswith("/dev/nbd"):
            raise RpcFault(-errno.ENODEV, f"illegal nbd device {params.nbd_device}")
        raise RpcFault(-errno.ENOENT)

"""The gRPC server of the CSI services on one UNIX socket."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio

from agent.csi import endpoint as endpoints
from agent.csi.controller import ControllerService
from agent.csi.groups import GroupControllerService
from agent.csi.identity import IdentityService
from agent.csi.interceptor import StatusInterceptor
from agent.csi.node import NodeService
from agent.csi.pb import csi_pb2_grpc
from agent.csi.ports import Groups, NodeSide, Prober, Snapshots, VolumeReader, Volumes
from agent.csi.tuning import modest_threads
from agent.errors import FailedPrecondition
from agent.model import StorageNode
from agent.tally import Tally
from agent.tasks import unix_socket

_log = logging.getLogger(__name__)

_SOCKET_MODE = 0o600
"""Whoever can connect can delete volumes and mount anywhere below the mount roots."""

_OPTIONS = (("grpc.minimal_stack", 1), ("grpc.enable_deadline_checking", 1))
"""Nothing that a socket of this machine does not need: a twentieth of the CPU time of a call."""


class CsiServer:
    """Serves the given services at `unix:///abs/path` between `start` and `stop`."""

    def __init__(
        self,
        endpoint: str,
        identity: IdentityService,
        controller: ControllerService | None = None,
        node: NodeService | None = None,
        groups: GroupControllerService | None = None,
        admit: Callable[[], None] | None = None,
    ) -> None:
        self.path = endpoints.socket_path(endpoint)
        self._identity = identity
        self._controller = controller
        self._node = node
        self._groups = groups
        self._admit = admit
        self._server: grpc.aio.Server | None = None
        self.calls = Tally()
        """What was answered, by method and code."""
        self._inode = 0

    @property
    def is_serving(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the path is taken or cannot be bound."""
        # gRPC would silently unlink whatever is there, even a socket in use.
        await unix_socket.make_room(self.path, "another csi_endpoint")
        with modest_threads():
            server = grpc.aio.server(interceptors=[StatusInterceptor(self.calls, self._admit)], options=_OPTIONS)
        add: Any = csi_pb2_grpc  # generated without types
        add.add_IdentityServicer_to_server(self._identity, server)
        if self._controller:
            add.add_ControllerServicer_to_server(self._controller, server)
        if self._groups:
            add.add_GroupControllerServicer_to_server(self._groups, server)
        if self._node:
            add.add_NodeServicer_to_server(self._node, server)
        _bind(server, self.path)
        self._inode = self.path.stat().st_ino
        self._server = server
        logging.getLogger("grpc._cython.cygrpc").addFilter(_somebody_waits)
        await server.start()
        _log.info("serving CSI at unix://%s", self.path)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds, then cancel them; remove the socket."""
        server, self._server = self._server, None
        if server is None:
            return
        await server.stop(grace_s)
        unix_socket.remove(self.path, self._inode)  # gRPC removes it itself, as a rule


def build_server(
    prober: Prober,
    volumes: Volumes,
    snapshots: Snapshots,
    groups: Groups,
    node: NodeSide,
    this: StorageNode,
    endpoint: str,
) -> CsiServer:
    """The server of a machine that is its own controller (`quarry standalone`)."""
    return CsiServer(
        endpoint,
        IdentityService(prober, has_groups=True),
        ControllerService(volumes, snapshots),
        NodeService(volumes, node, this),
        GroupControllerService(groups),
    )


def build_node_server(
    prober: Prober, volumes: VolumeReader, node: NodeSide, this: StorageNode, endpoint: str
) -> CsiServer:
    """The server of a node of a cluster (`quarry node`)."""
    return CsiServer(endpoint, IdentityService(prober), node=NodeService(volumes, node, this))


def build_controller_server(
    prober: Prober,
    volumes: Volumes,
    snapshots: Snapshots,
    endpoint: str,
    admit: Callable[[], None],
) -> CsiServer:
    """The server of a controller of a cluster (`quarry controller`); `admit` raises while another one leads.

    Without group snapshots: nothing holds back writers on several nodes at one point in time yet.
    """
    return CsiServer(endpoint, IdentityService(prober), ControllerService(volumes, snapshots), admit=admit)


def _somebody_waits(record: logging.LogRecord) -> bool:
    """Not an answer to a caller who left at the moment it was sent: gRPC calls that an error, with a traceback."""
    return record.exc_info is None or getattr(record.exc_info[0], "__name__", "") != "ExecuteBatchError"


def _bind(server: grpc.aio.Server, path: Path) -> None:
    before = os.umask(0o777 & ~_SOCKET_MODE)  # gRPC binds here and now: at no time can others connect
    try:
        server.add_insecure_port(f"unix://{path}")
    except RuntimeError as error:
        raise FailedPrecondition(f"cannot listen at {path}: {error}") from error
    finally:
        os.umask(before)
    path.chmod(_SOCKET_MODE)

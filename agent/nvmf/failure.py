"""What can go wrong between a host and a controller, as errors of the agent's tree that carry the NVMe status."""

from __future__ import annotations

from agent.errors import FailedPrecondition, QuarryError, Unavailable
from agent.nvmf import status as statuses


class ConnectRefused(FailedPrecondition):
    """The controller answered a Connect with an error: this host may not, or no such subsystem or controller."""

    def __init__(self, subnqn: str, status: int) -> None:
        self.subnqn = subnqn
        self.status = status
        super().__init__(f"{subnqn} refused the connection: {statuses.describe(status)}")


class CommandError(QuarryError):
    """A command completed with an error status."""

    def __init__(self, what: str, status: int, dnr: bool = False) -> None:
        self.status = status
        self.dnr = dnr
        super().__init__(f"{what} failed: {statuses.describe(status)}")

    @property
    def path_related(self) -> bool:
        """The path cannot serve the I/O now (ANA state); the namespace may be fine."""
        return statuses.code_type(self.status) == statuses.PATH_RELATED


class ConnectionLost(Unavailable):
    """The connection to the controller ended; whether commands in flight were executed is unknown."""

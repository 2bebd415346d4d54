"""What a target's refusal, or its silence, means to whoever asked for the volume."""

from __future__ import annotations

from agent.errors import FailedPrecondition, QuarryError, ResourceExhausted, RpcError, TransportClosed, Unavailable
from agent.pools.metadata_pages import is_out_of_pages, used_up
from agent.volumes.rules.plan import (
    Action,
    AddListener,
    CreateLvol,
    CreateSubsystem,
    DesiredReplica,
    ResizeLvol,
    SetQos,
)


def no_answer(desired: DesiredReplica, error: BaseException) -> BaseException:
    """What was raised instead of an answer, in the caller's words."""
    if isinstance(error, TransportClosed):
        gone = Unavailable(f"the target went away while volume {desired.volume} was being changed; repeat the call")
        gone.__cause__ = error
        return gone
    return error


def pool_refusal(pool: str, what: str, error: RpcError) -> ResourceExhausted:
    """Why a pool did not take `what`."""
    if is_out_of_pages(error):
        return ResourceExhausted(used_up(pool))
    return ResourceExhausted(f"pool {pool} refused {what}: {error.message}")


def refusal(desired: DesiredReplica, action: Action, error: RpcError, most_bytes: int, pool_bytes: int) -> QuarryError:
    """What the target's lasting refusal of `action` means to the caller, with the remedy where there is one.

    `most_bytes`: the largest volume of that kind that the pool could hold if it were empty; `pool_bytes`: its size.
    """
    match action:
        case CreateLvol() | ResizeLvol() if desired.size_bytes > most_bytes:
            return ResourceExhausted(
                f"{desired.size_bytes} bytes are more than pool {desired.pool} can ever hold ({most_bytes})"
            )
        case CreateLvol() | ResizeLvol() if desired.size_bytes > pool_bytes and is_out_of_pages(error):
            return ResourceExhausted(
                f"pool {desired.pool} refused {desired.size_bytes} bytes: the target has no memory to describe a "
                f"volume so much larger than its pool ({pool_bytes} bytes), or the pool's metadata pages are used up"
            )
        case CreateLvol() | ResizeLvol():
            return pool_refusal(desired.pool, f"{desired.size_bytes} bytes", error)
        case CreateSubsystem():
            return ResourceExhausted(
                f"the target refused one more subsystem ({error.message}); spdk_tgt serves 1,024 unless "
                "nvmf_set_max_subsystems raises it before it initialises (chart: target.maxSubsystems)"
            )
        case SetQos():
            # Its bdev was just closed, or is being opened: the next attempt finds it in one state or the other.
            return Unavailable(f"the target cannot change the limits of volume {desired.volume} now; repeat the call")
        case AddListener(_, listener):
            return FailedPrecondition(
                f"the target cannot listen on {listener.address}:{listener.port} ({error.message}); "
                "check nvmf_address and nvmf_port"
            )
        case _:
            return error

"""Doing one planned action: the SPDK call it stands for, and what is known of the target once it succeeded."""

from __future__ import annotations

from dataclasses import replace

from agent.model import Qos
from agent.spdk import bdev, lvol, nvmf
from agent.spdk.client import Rpc
from agent.volumes.rules import plan as p

MODEL_NUMBER = "Quarry volume"
NAMESPACE_ID = 1

DELETE_TIMEOUT_S = 600.0
"""How long deleting an lvol may take: all that was written to it is zeroed (decision 0003).

Its bdev is gone at once, so a call given up earlier would pass for done when repeated, and a target that died then
would come back with an lvol that nobody deletes any more.
"""


async def run(rpc: Rpc, action: p.Action) -> str:
    """Issue the call of `action`; returns the UUID of a created lvol, else an empty string."""
    match action:
        case p.CreateLvol(pool, name, size_bytes, thin):
            # Zeroed when freed: SPDK hands clusters on as they are, with what the last volume wrote (decision 0003).
            return await lvol.create(rpc, pool, name, size_bytes, thin=thin, clear_method="write_zeroes")
        case p.DeleteLvol(name):
            await lvol.delete(rpc, name, timeout_s=DELETE_TIMEOUT_S)
        case p.ResizeLvol(name, size_bytes):
            await lvol.resize(rpc, name, size_bytes)
        case p.SetQos(name, qos):
            await _set_qos(rpc, name, qos)
        case _:
            await _run_on_subsystem(rpc, action)
    return ""


async def _run_on_subsystem(rpc: Rpc, action: p.SubsystemAction) -> None:
    match action:
        case p.CreateSubsystem(nqn, serial):
            # decision 0022: no discards
            await nvmf.create_subsystem(rpc, nqn, serial, MODEL_NUMBER, max_namespaces=1, ana_reporting=True, dmrsl=0)
        case p.DeleteSubsystem(nqn):
            await nvmf.delete_subsystem(rpc, nqn)
        case p.AddNamespace(nqn, name):
            await nvmf.add_namespace(rpc, nqn, name, nsid=NAMESPACE_ID)
        case p.RemoveNamespace(nqn):
            await nvmf.remove_namespace(rpc, nqn, NAMESPACE_ID)
        case p.AddListener(nqn, listener):
            await nvmf.add_listener(rpc, nqn, listener.address, listener.port)
        case p.RemoveListener(nqn, listener):
            await nvmf.remove_listener(rpc, nqn, listener.address, listener.port)
        case p.AddHost(nqn, host):
            await nvmf.add_host(rpc, nqn, host)
        case p.RemoveHost(nqn, host):
            await nvmf.remove_host(rpc, nqn, host)


def applied(seen: p.ObservedReplica, action: p.Action, result: str) -> p.ObservedReplica:
    """What is known after `action` succeeded with `result`, given what was known before."""
    match action:
        case p.CreateLvol(_, _, size_bytes, _):
            return replace(seen, lvol=p.LvolSeen(result, size_bytes))
        case p.DeleteLvol(_):
            return replace(seen, lvol=None)
        case p.CreateSubsystem(_, _):
            return replace(seen, subsystem=seen.subsystem or p.SubsystemSeen())
        case p.DeleteSubsystem(_):
            return replace(seen, subsystem=None)
        case p.ResizeLvol(_, size_bytes):
            return replace(seen, lvol=replace(seen.lvol, size_bytes=size_bytes) if seen.lvol else None)
        case p.SetQos(_, qos):
            return replace(seen, lvol=replace(seen.lvol, qos=qos) if seen.lvol else None)
        case _:
            subsystem = _subsystem_after(seen.subsystem or p.SubsystemSeen(), action, seen.lvol)
            return replace(seen, subsystem=subsystem)


def _subsystem_after(
    subsystem: p.SubsystemSeen, action: p.SubsystemAction, lvol_seen: p.LvolSeen | None
) -> p.SubsystemSeen:
    match action:
        case p.AddNamespace(_, _):
            return replace(subsystem, namespace=lvol_seen.uuid if lvol_seen else "")
        case p.RemoveNamespace(_):
            return replace(subsystem, namespace="")
        case p.AddListener(_, listener):
            return replace(subsystem, listeners=subsystem.listeners | {listener})
        case p.RemoveListener(_, listener):
            return replace(subsystem, listeners=subsystem.listeners - {listener})
        case p.AddHost(_, host):
            return replace(subsystem, hosts=subsystem.hosts | {host})
        case p.RemoveHost(_, host):
            return replace(subsystem, hosts=subsystem.hosts - {host})
        case _:
            return subsystem


async def _set_qos(rpc: Rpc, name: str, qos: Qos) -> None:
    mib = 1024 * 1024
    await bdev.set_qos(
        rpc,
        name,
        rw_iops=qos.rw_iops,
        rw_mbps=qos.rw_bytes_per_second // mib,
        r_mbps=qos.read_bytes_per_second // mib,
        w_mbps=qos.write_bytes_per_second // mib,
    )

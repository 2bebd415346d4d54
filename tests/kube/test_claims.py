"""PersistentVolumeClaims through the real sidecars, with the permissions of the rendered manifest."""

from __future__ import annotations

import pytest

from agent.model import ALIVE, StorageNode, Volume

from . import sidecars
from .claims import CAPACITIES, CLAIMS, SNAPSHOTS, Claims
from .cluster import CONTROLLERS, NODES
from .commands import quarry
from .conftest import Opener, until
from .installed import InstalledCluster
from .plane import Plane

pytestmark = [pytest.mark.timeout(300), pytest.mark.apiserver("tokens for the sidecars")]


async def test_the_life_of_claims(claims: Claims, cluster: InstalledCluster, open_store: Opener) -> None:
    for number in range(4):
        await claims.claim(f"claim-{number}", "64Mi", NODES[number % 2])
    first, second, *_ = [await claims.bound(f"claim-{number}") for number in range(4)]
    assert len(set().union(*(await cluster.lvols()).values())) == 4
    async with claims.attached(first, "node-a") as host:
        await host.write(1, 0, b"one" * 4096)
    source = await claims.snapshot("snap", "claim-0")

    async with claims.attached(first, "node-b") as host:
        await host.write(1, 0, b"two" * 4096)
        await claims.patch(f"{CLAIMS}/claim-0", {"spec": {"resources": {"requests": {"storage": "128Mi"}}}})
        await claims.until(f"{CLAIMS}/claim-0", lambda it: it["status"]["capacity"]["storage"] == "128Mi")
        assert (await host.namespaces())[0].size_bytes == 128 << 20
        assert await host.read(1, 0, 12288) == b"two" * 4096

    await claims.claim("restored", "64Mi", "node-a", source=source)
    async with claims.attached(await claims.bound("restored"), "node-b") as host:
        assert await host.read(1, 0, 12288) == b"one" * 4096
    await claims.claim("clone", "128Mi", "node-a", source={"kind": "PersistentVolumeClaim", "name": "claim-0"})
    async with claims.attached(await claims.bound("clone"), "node-a") as host:
        assert await host.read(1, 0, 12288) == b"two" * 4096

    await claims.patch(f"{CLAIMS}/claim-1", {"spec": {"volumeAttributesClassName": "quarry-bronze"}})
    await claims.until(
        f"{CLAIMS}/claim-1", lambda it: it["status"].get("currentVolumeAttributesClassName") == "quarry-bronze"
    )
    modified = await (await open_store()).get(Volume, second["spec"]["csi"]["volumeHandle"])
    assert modified is not None
    assert modified.spec.qos.rw_iops == 2000

    for name in (*(f"claim-{number}" for number in range(4)), "restored", "clone"):
        await claims.delete(f"{CLAIMS}/{name}")
    await claims.delete(f"{SNAPSHOTS}/snap")
    await claims.all_gone()
    assert not cluster.restarts, f"ended by themselves: {cluster.restarts}\n{cluster.logs()}"


async def test_decimal_sizes(claims: Claims) -> None:
    """A volume is larger than "100M"; a claim of "100M" can still be made of its snapshot, and of itself."""
    await claims.claim("claim", "100M", "node-a")
    await claims.bound("claim")
    source = await claims.snapshot("snap", "claim")
    await claims.claim("restored", "100M", "node-a", source=source)
    await claims.claim("clone", "100M", "node-a", source={"kind": "PersistentVolumeClaim", "name": "claim"})
    for name in ("restored", "clone"):
        await claims.bound(name)
    for name in ("claim", "restored", "clone"):
        await claims.delete(f"{CLAIMS}/{name}")
    await claims.delete(f"{SNAPSHOTS}/snap")
    await claims.all_gone()


async def test_nothing_waits_for_a_node_that_was_forgotten(
    claims: Claims, cluster: InstalledCluster, open_store: Opener, plane: Plane
) -> None:
    """A claim that another node uses, and a snapshot of it: attachment, volumes and contents go."""
    store = await open_store()
    await claims.claim("claim", "64Mi", "node-a")
    volume = await claims.bound("claim")
    await claims.snapshot("snap", "claim")
    await claims.attach(volume, "node-b")

    async def says(status: str) -> bool:
        node = await store.get(StorageNode, "node-a")
        conditions = node.status.conditions if node else ()
        return any((each.type, each.status) == (ALIVE, status) for each in conditions)

    await until(lambda: says("True"), 90)
    cluster.kill("node-a")
    cluster.kill_target("node-a")
    await until(lambda: says("False"), 90)
    done = await quarry(plane, "nodes", "forget", "node-a", "--yes")
    if done is None:
        pytest.skip("no kubectl")
    assert (done.returncode, done.stderr) == (0, ""), done
    await claims.detach(volume, "node-b")
    await claims.delete(f"{CLAIMS}/claim")
    await claims.delete(f"{SNAPSHOTS}/snap")
    await claims.objects_gone()


async def test_room_is_told_to_the_scheduler(claims: Claims) -> None:
    """A CSIStorageCapacity for every node and class, owned by the Deployment."""

    async def told() -> bool:
        found = await claims.list(CAPACITIES)
        of_nvme = [each for each in found if each["storageClassName"] == "quarry-nvme" and each.get("capacity")]
        where = {tuple(each["nodeTopology"]["matchLabels"].values()) for each in of_nvme}
        return where == {(node,) for node in NODES}

    await until(told, 60.0)
    for each in await claims.list(CAPACITIES):
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Deployment", "quarry-controller")


async def test_beside_the_controller_that_waits_no_sidecar_works(claims: Claims, cluster: InstalledCluster) -> None:
    """Sidecars have no election of their own: they follow the controller in their Pod."""
    leader = await cluster.leader()
    (waiting,) = set(CONTROLLERS) - {leader}
    await claims.claim("claim", "64Mi", "node-a")
    await claims.bound("claim")
    assert "Starting provisioner controller" in cluster.log(f"{leader}/csi-provisioner")
    for sidecar in sidecars.present():
        last = cluster.log(f"{waiting}/{sidecar}").splitlines()[-1]
        assert "CSI driver is not ready" in last or "Probing CSI driver for readiness" in last
    await claims.delete(f"{CLAIMS}/claim")
    await claims.all_gone()

"""What the agent tells over HTTP, beside what is really there: the same on both kinds of target."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.csi.client import CallFailed
from agent.nvmf import initiator
from tests.contract.targets import free_port
from tests.contract.waiting import until
from tests.crash.machine import NODE, Machine, Patient, holdings
from tests.diag.asking import Metrics, ask, scrape, url_of

MIB = 1 << 20
CONFIG = "{rpc: {heartbeat_interval_s: 0.3}, pool: {refresh_interval_s: 0.1}}"


async def test_metrics_say_what_is_there(machine: Machine) -> None:
    machine.start_agent(CONFIG)
    url, csi = await url_of(machine.folder / "agent"), Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        before = await scrape(url)
        assert before.value("quarry_ready") == 1
        assert before.value("quarry_target_state", state="Ready") == 1
        assert before.value("quarry_target_rebuilds_total") == 1
        assert before.value("quarry_disks", tier="ssd", phase="Ready") == 1
        assert before.all("quarry_volumes") == {}
        size = before.value("quarry_pool_size_bytes", tier="ssd")
        assert 19 << 30 < size <= 20 << 30

        used = await csi.call("create_volume", "used", 64 * MIB, {"tier": "ssd"})
        await csi.call("create_volume", "thick", 32 * MIB, {"tier": "ssd", "provisioning": "thick"})
        with pytest.raises(CallFailed):
            await csi.call("create_volume", "used", 65 * MIB, {"tier": "ssd"})
        context = await csi.call("publish", used, NODE)
        host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
        try:
            for offset in range(3):
                await host.write(1, offset * MIB, b"q" * 4096)
            await host.read(1, 0, 4096)
        finally:
            await host.close()

        async def later() -> Metrics:
            return await scrape(url)

        # The free space is looked at every 0.1 s here.
        now = await until(later, lambda seen: seen.value("quarry_pool_allocated_bytes", tier="ssd") >= 35 * MIB)
        assert len((await holdings(machine.target.socket_path)).lvols) == 2
        assert now.value("quarry_volumes", tier="ssd", phase="Ready") == 2
        assert now.value("quarry_provisioned_bytes", tier="ssd", provisioning="thin") == 64 * MIB
        assert now.value("quarry_provisioned_bytes", tier="ssd", provisioning="thick") == 32 * MIB
        assert now.value("quarry_pool_reserved_bytes", tier="ssd") == pytest.approx(32 * MIB + 64 * MIB / 10)
        assert now.value("quarry_volumes_published") == 1
        assert now.value("quarry_volumes_abnormal") == 0
        assert now.value("quarry_csi_calls_total", method="CreateVolume", code="OK") == 2
        assert now.value("quarry_csi_calls_total", method="CreateVolume", code="ALREADY_EXISTS") == 1
        assert now.value("quarry_csi_call_duration_seconds_count", method="CreateVolume") == 3
        assert now.value("quarry_csi_call_duration_seconds_bucket", method="CreateVolume", le="+Inf") == 3
        assert now.value("quarry_spdk_call_duration_seconds_count", method="bdev_lvol_create") == 2
        assert now.value("quarry_store_writes_total", kind="Volume", operation="added") == 2
        # Only the published volume has I/O counters.
        assert now.value("quarry_volume_info", volume=used, csi_name="used", tier="ssd") == 1
        assert set(now.all("quarry_volume_writes_total").values()) == {3}
        assert now.value("quarry_volume_written_bytes_total", volume=used) == 3 * 4096
        assert now.value("quarry_volume_reads_total", volume=used) >= 1
        assert now.value("quarry_volume_write_seconds_total", volume=used) > 0
        assert now.value("quarry_volume_io_omitted") == 0
        assert now.value("process_resident_memory_bytes") > MIB
    finally:
        await csi.close()


async def test_every_metric_is_documented_and_every_documented_one_told(machine: Machine) -> None:
    machine.start_agent(CONFIG)
    url, csi = await url_of(machine.folder / "agent"), Patient(machine.endpoint)
    try:
        await csi.wait_ready()
    finally:
        await csi.close()
    told = (await scrape(url)).families
    told_names = {
        f"{name}_total" if family.type == "counter" else name
        for name, family in told.items()
        if name.startswith("quarry_")
    }
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().split("### Alerts")[0]
    documented = set(re.findall(r"`(quarry_[a-z_]+)`", page))
    assert told_names == documented
    assert all(family.documentation for family in told.values())


async def test_the_target_is_killed_and_comes_back(machine: Machine) -> None:
    machine.start_agent(CONFIG)
    url, csi = await url_of(machine.folder / "agent"), Patient(machine.endpoint)

    async def readiness() -> tuple[int, list[str]]:
        answer = await ask(url, "/readyz")
        return answer.status, [reason["part"] for reason in answer.json["reasons"]]

    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "v", 16 * MIB, {"tier": "ssd"})
        await csi.call("publish", volume, NODE)
        assert await readiness() == (200, [])
        machine.target.kill()
        assert await until(readiness, lambda found: found[0] == 503) == (503, ["target"])
        assert (await ask(url, "/healthz")).status == 200
        away = await scrape(url)
        assert away.value("quarry_ready") == 0
        assert away.value("quarry_target_state", state="Unreachable") == 1
        assert away.value("quarry_volumes_abnormal") == 1
        shown = (await ask(url, f"/v1/volumes/{volume}")).json
        assert shown["condition"]["abnormal"] and "Unreachable" in shown["condition"]["message"]
        machine.target.start()
        await until(readiness, lambda found: found == (200, []))
        assert (await ask(url, f"/v1/nodes/{NODE}")).json["now"]["target_rebuilds"] == 2

        async def rebuilds() -> float:
            return (await scrape(url)).value("quarry_target_rebuilds_total")

        await until(rebuilds, lambda count: count == 2)
    finally:
        await csi.close()


async def test_resources_are_found_by_every_name(machine: Machine) -> None:
    machine.start_agent()
    url, csi = await url_of(machine.folder / "agent"), Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        volume = await csi.call("create_volume", "pvc-1", 16 * MIB, {"tier": "ssd"})
        snapshot = (await csi.call("create_snapshot", "snap-1", volume)).snapshot_id
        assert [each["meta"]["name"] for each in (await ask(url, "/v1/volumes")).json["items"]] == [volume]
        by_id, by_name = (await ask(url, f"/v1/volumes/{volume}")).json, (await ask(url, "/v1/volumes/pvc-1")).json
        assert by_id == by_name
        assert by_id["spec"]["size_bytes"] == 16 * MIB
        assert (by_id["snapshots"], by_id["stands_on"]) == ([snapshot], [snapshot])
        assert (await ask(url, "/v1/snapshots/snap-1")).json["carries"] == [volume]
        (disk,) = [each for each in (await ask(url, "/v1/disks")).json["items"] if each["space"] is not None]
        shown = (await ask(url, f"/v1/disks/{disk['status']['path']}")).json
        assert (shown["meta"]["name"], shown["volumes"]) == (disk["meta"]["name"], [volume])
        assert shown["space"]["reserved_bytes"] >= 16 * MIB / 10
        for path, status in (("/v1/volumes/absent", 404), ("/v1/secrets", 404), ("/v2", 404)):
            answer = await ask(url, path)
            assert (answer.status, list(answer.json)) == (status, ["error"])
    finally:
        await csi.close()


async def test_requests_that_are_not_for_reading(machine: Machine) -> None:
    machine.start_agent()
    url = await url_of(machine.folder / "agent")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert (await ask(url, "/v1/volumes", method=method)).status == 405
    assert (await ask(url, "/v1/volumes", data=b"x")).status == 413
    assert (await ask(url, "/v1/" + "v" * 9000)).status == 400
    port = int(url.rpartition(":")[2])
    deadline = time.monotonic() + 20
    while (await ask(url, "/readyz")).status != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    # More connections than there may be, none of which says anything: those who ask are answered all the same.
    quiet = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
    assert (await ask(url, "/healthz")).text == "ok\n"
    for _, writer in quiet:
        writer.close()
    assert "Traceback" not in machine.agent_log()
    assert machine.stop_agent() == 0
    assert not (machine.folder / "agent" / "http.json").exists()


def test_an_address_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        argv = [sys.executable, "-m", "agent.cli.main", "standalone", "--state-dir", str(folder / "s")]
        argv += ["--csi-endpoint", f"unix://{folder}/csi.sock", "--nvmf-port", str(free_port())]
        argv += ["--http-address", address]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 6
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("quarry: ")]
    assert address in line and "--http-address" in line


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "localhost:1", "127.0.0.1:70000", "::1:80", ":80"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "agent.cli.main", "standalone", "--state-dir", str(tmp_path), "--http-address"]
    done = subprocess.run([*argv, address], capture_output=True, text=True, timeout=30)
    assert (done.returncode, "http_address" in done.stderr) == (2, True)


async def test_where_it_serves_is_written_down_again(machine: Machine) -> None:
    machine.start_agent()
    folder = machine.folder / "agent"
    url, file = await url_of(folder), folder / "http.json"

    async def told() -> str:
        return file.read_text() if file.exists() else ""

    was = await told()
    file.unlink()
    await until(told, lambda text: text == was)
    file.write_text("")  # as a filesystem that was full leaves it
    await until(told, lambda text: text == was)
    assert json.loads(was)["url"] == url
    other = was.replace("standalone", "controller")
    file.write_text(other)
    assert machine.stop_agent() == 0
    assert await told() == other  # what another agent wrote there is not ours to remove


async def test_none_is_wanted(machine: Machine) -> None:
    (machine.folder / "agent").mkdir()
    killed = {"url": "http://127.0.0.1:9", "pid": 99999999}
    (machine.folder / "agent" / "http.json").write_text(json.dumps(killed))
    machine.start_agent(json.dumps({"http_address": ""}))
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
    finally:
        await csi.close()
    assert not (machine.folder / "agent" / "http.json").exists()

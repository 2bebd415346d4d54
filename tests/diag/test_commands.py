"""The commands that ask an agent: what they print of a real one, and what they say when there is none."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.crash.machine import NODE, Machine, Patient
from tests.diag.asking import url_of

MIB = 1 << 20


def quarry(*args: str, program: str = "quarry", **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name(program)), *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})


async def said(*args: str, **options: Any) -> str:
    """What the command prints; it ends well and complains of nothing."""
    done = await asyncio.to_thread(quarry, *args, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@dataclass
class Scene:
    """An agent with a volume that is published, limited and cloned of a snapshot."""

    machine: Machine
    volume: str
    snapshot: str
    url: str

    @property
    def state_dir(self) -> str:
        return str(self.machine.folder / "agent")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    machine = Machine("embedded")
    csi = Patient(machine.endpoint)
    try:
        machine.target.start()
        machine.start_agent()
        url = await url_of(machine.folder / "agent")
        await csi.wait_ready()
        parameters = {"tier": "ssd", "iops": "5000", "bandwidth": "100Mi"}
        volume = await csi.call("create_volume", "pvc-1", 96 * MIB, parameters)
        snapshot = (await csi.call("create_snapshot", "snap-1", volume)).snapshot_id
        await csi.call("publish", volume, NODE)
        yield Scene(machine, volume, snapshot, url)
    finally:
        await csi.close()
        machine.close()


async def test_tables(scene: Scene) -> None:
    at = ("--state-dir", scene.state_dir)
    head, line = (await said("volumes", "list", *at)).splitlines()
    assert head.split()[:3] == ["CSI", "NAME", "ID"]
    assert line.split()[:6] == ["pvc-1", scene.volume, "96", "MiB", "ssd", "Ready"]
    assert NODE in line and line.endswith("ok")
    _, node = (await said("nodes", "list", *at)).splitlines()
    assert node.split()[:2] == [NODE, "Ready"]
    _, snapshot = (await said("snapshots", "list", *at)).splitlines()
    assert snapshot.split()[:3] == ["snap-1", scene.snapshot, scene.volume]
    # The same by the URL; and every resource by JSON, with what the tables show.
    assert (await said("volumes", "list", "--url", scene.url)).splitlines()[1].split()[1] == scene.volume
    (document,) = json.loads(await said("volumes", "list", *at, "-o", "json"))
    assert document["spec"]["size_bytes"] == 96 * MIB


async def test_names_that_would_turn_or_break_a_line_are_shown_escaped(scene: Scene) -> None:
    """CSI allows line breaks in names, and says nothing of what makes a terminal write from right to left."""
    csi = Patient(scene.machine.endpoint)
    name = "two\nlines \u202egnp.exe\u200b"
    escaped = r"two\nlines \u202egnp.exe\u200b"
    try:
        volume = await csi.call("create_volume", name, 96 * MIB, {"tier": "ssd"})
        await csi.call("create_snapshot", name, volume)
    finally:
        await csi.close()
    at = ("--state-dir", scene.state_dir)
    for kind, count in (("volumes", 3), ("snapshots", 3)):
        lines = (await said(kind, "list", *at)).splitlines()
        assert len(lines) == count, lines
        assert sum(line.startswith(escaped) for line in lines) == 1
        assert escaped in await said(kind, "show", name, *at)
        document = await said(kind, "list", *at, "-o", "json")
        assert name in {each["spec"]["csi_name"] for each in json.loads(document)}
        assert document.replace("\n", "").isprintable()
    refused = await asyncio.to_thread(quarry, "volumes", "show", f"no {name}", *at)
    assert refused.returncode == 3
    assert [line.isprintable() for line in refused.stderr.splitlines()] == [True]
    log = scene.machine.folder / "agent.log"
    assert "\u202e" not in log.read_text()


async def test_everything_about_one_volume(scene: Scene) -> None:
    shown = await said("volumes", "show", "pvc-1", "--state-dir", scene.state_dir)
    volume = json.loads(await said("volumes", "show", scene.volume, "--state-dir", scene.state_dir, "-o", "json"))
    (replica,) = volume["spec"]["placement"]
    (served,) = volume["status"]["replicas"]
    (attachment,) = volume["spec"]["attachments"]
    for fact in (
        scene.volume,
        "Ready",
        f"96 MiB ({96 * MIB} bytes), thin",
        f"disk {replica['disk']} of node {NODE}",
        served["lvol_uuid"],
        f"127.0.0.1:{scene.machine.port} {served['endpoint']['nqn']}",
        f"{NODE} (ReadWriteOnce), host {attachment['host_nqn']}",
        "5000 operations/s",
        "100 MiB/s read and written",
        "iops=5000",
        f"snapshot {scene.snapshot}",
    ):
        assert fact in shown, shown
    assert scene.volume in await said("snapshots", "show", "snap-1", "--state-dir", scene.state_dir)
    node = await said("nodes", "show", NODE, "--state-dir", scene.state_dir)
    assert scene.volume in node and replica["disk"] in node


async def test_disks_with_what_the_agent_knows(scene: Scene) -> None:
    disks = json.loads(await said("disks", "list", "--url", scene.url, "-o", "json"))
    (mine,) = [disk for disk in disks if disk["space"] is not None]
    shown = await said("disks", "show", str(scene.machine.disk), "--url", scene.url)
    assert "promised to volumes" in shown and scene.volume in shown
    assert str(scene.machine.disk) in await said("disks", "list", "--url", scene.url)
    assert mine["space"]["reserved_bytes"] >= 96 * MIB // 10


@pytest.fixture
def cluster(scene: Scene, tmp_path: Path) -> dict[str, str]:
    """Environment with a kubectl that knows the scene's agent as that of worker-1, and as the controller."""
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_kubectl.py")} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "QUARRY_TEST_URL": scene.url, "QUARRY_TEST_LOG": str(tmp_path / "log")}


def commands(cluster: dict[str, str]) -> list[list[str]]:
    return [json.loads(line) for line in Path(cluster["QUARRY_TEST_LOG"]).read_text().splitlines()]


async def test_as_a_plugin_of_kubectl(scene: Scene, cluster: dict[str, str]) -> None:
    """The controller is asked, which knows everything, or the agent of the node that is named."""
    shown = await said("volumes", "list", program="kubectl-quarry", **cluster)
    assert shown.splitlines()[1].split()[:2] == ["pvc-1", scene.volume]
    assert any("quarry-controller-5d9f:9811" in each[-1] for each in commands(cluster))
    disk = str(scene.machine.disk)
    assert disk in await said("disks", "show", disk, "--node", "worker-1", program="kubectl-quarry", **cluster)
    assert "quarry-node-x7k2p:9810" in commands(cluster)[-1][-1]
    # The same program by its other name, when a node is named.
    node = await said("nodes", "show", NODE, "--node", "worker-1", "--context", "lab", **cluster)
    assert "Ready" in node
    assert commands(cluster)[-1][:2] == ["--context", "lab"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["volumes", "show", "absent"], 3, ["volume", "absent"]),
        (["volumes", "list", "--node", "worker-9"], 4, ["worker-9", "kubectl get pods"]),
        (["volumes", "list", "--namespace", "elsewhere"], 4, ["elsewhere", "--namespace"]),
        (["volumes", "list", "--url", "http://127.0.0.1:1", "--node", "worker-1"], 2, ["--url", "--node"]),
    ],
)
async def test_a_plugin_that_finds_nothing(
    cluster: dict[str, str], args: list[str], code: int, words: list[str]
) -> None:
    done = await asyncio.to_thread(quarry, *args, program="kubectl-quarry", **cluster)
    assert (done.returncode, done.stdout) == (code, "")
    assert all(word in done.stderr for word in words), done.stderr


async def test_names_that_do_not_exist(scene: Scene) -> None:
    for kind in ("nodes", "volumes", "snapshots"):
        done = await asyncio.to_thread(quarry, kind, "show", "absent", "--state-dir", scene.state_dir)
        assert (done.returncode, done.stdout) == (3, "")
        assert "absent" in done.stderr


def test_no_agent(tmp_path: Path) -> None:
    done = quarry("volumes", "list", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert str(tmp_path) in done.stderr and "--url" in done.stderr


async def test_an_agent_that_was_killed(scene: Scene) -> None:
    scene.machine.kill_agent()
    done = await asyncio.to_thread(quarry, "volumes", "list", "--state-dir", scene.state_dir)
    assert done.returncode == 4
    assert scene.url in done.stderr


def test_another_server() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = quarry("nodes", "list", "--url", f"http://127.0.0.1:{server.server_port}")
        thread.join(10)
    assert done.returncode == 4
    assert "no agent of Quarry" in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/"])
def test_an_url_that_is_none(url: str) -> None:
    done = quarry("nodes", "list", "--url", url)
    assert (done.returncode, "--url" in done.stderr) == (2, True)

"""One run of the demo: set the stage, go through the steps, clean up whatever happened, tell the result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from agent.cli.demo import frontend as frontends
from agent.cli.demo.kernel import KernelHost
from agent.cli.demo.report import Reporter, StepResult, print_steps, reporter_for
from agent.cli.demo.scene import GIB, VOLUME_NAME, DemoFailed, Host, Scene, Step, size
from agent.cli.demo.shared import give_back
from agent.cli.demo.user import UserHost
from agent.cli.demo.workspace import Workspace
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_json
from agent.config.settings import Settings, load_settings
from agent.csi.client import CsiClient
from agent.daemon.standalone import Standalone
from agent.disks.files import disk_id
from agent.errors import QuarryError
from agent.volumes.rules.names import volume_id, volume_nqn

log = logging.getLogger(__name__)

NODE_NAME = "demo-node"
TIERS = ("nvme", "ssd", "hdd")
_HEARTBEAT = "spdk_get_version"
"""The agent's regular question whether the target still answers: no step's doing."""
_READY_TIMEOUT_S = 30.0
_STEP_TIMEOUT_S = 120.0
_CLEANUP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. `spdk_socket`: a running target to use instead of the embedded one."""

    frontend: str
    data_bytes: int
    spdk_socket: Path | None = None


async def run_demo(wish: Wish, output: str) -> int:
    """Run the demo; returns the exit code. SIGINT, SIGTERM and SIGHUP end it early and cleanly."""
    received: list[signal.Signals] = []
    run = Run(wish, reporter_for(output))
    story: asyncio.Task[None] | None = None

    def on_signal(number: signal.Signals) -> None:
        # The first one ends the story; further ones change nothing, since cleaning up has deadlines of its own.
        if story is not None and not received:
            story.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    story = asyncio.create_task(run.tell())
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await story
    finally:
        wrong = await run.clean_up()
    return _conclude(run, wrong, output, received)


def _conclude(run: Run, wrong: list[str], output: str, received: list[signal.Signals]) -> int:
    if output == "json":
        print_json(run.document())
    elif not received:
        print_steps(run.results)
    failed = next((result for result in run.results if not result.ok), None)
    if wrong:
        click.echo(f"quarry: demo clean-up: {'; '.join(wrong)}", err=True)
    if received:
        click.echo(f"quarry: demo interrupted ({received[0].name}), everything it made is removed", err=True)
        return 128 + received[0]
    if failed is not None:
        click.echo(f"quarry: demo step {failed.name!r} failed: {failed.error}", err=True)
    return ExitCode.DEMO_FAILED if failed or wrong else ExitCode.OK


class Run:
    """Runs steps one after the other, remembers how they went and what has to be undone."""

    def __init__(self, wish: Wish, reporter: Reporter) -> None:
        self.results: list[StepResult] = []
        self._wish = wish
        self._frontend = wish.frontend
        self._reporter = reporter
        self._undo = contextlib.AsyncExitStack()
        self._undoing: asyncio.Task[None] | None = None
        self._workspace: Workspace | None = None
        self._calls: Counter[str] = Counter()

    def document(self) -> dict[str, object]:
        """The run for machines."""
        return {
            "frontend": self._frontend,
            "ok": bool(self.results) and all(result.ok for result in self.results),
            "failed": next((result.name for result in self.results if not result.ok), None),
            "steps": [result.document() for result in self.results],
        }

    async def tell(self) -> None:
        """The whole story; ends at the first step that fails."""
        workspace = self._workspace = Workspace()
        choice = await frontends.choose(self._wish.frontend, workspace.folder, self._wish.spdk_socket is None)
        self._frontend = choice.frontend
        self._say_where(choice, workspace)
        scene = self._scene(workspace, choice.frontend)
        host: Host = UserHost(scene) if choice.frontend == frontends.USER else KernelHost(scene, choice.fs_type)
        if self._wish.spdk_socket is not None:
            nqn = volume_nqn(volume_id(VOLUME_NAME))
            disks = [disk_id(file, NODE_NAME) for file in _disk_files(workspace)]
            self._undo.push_async_callback(give_back, self._wish.spdk_socket, nqn, disks)
        self._undo.push_async_callback(scene.node.stop)
        self._undo.push_async_callback(scene.csi.close)
        self._undo.push_async_callback(host.release)
        for step in (*self._opening(scene), *host.steps(), *self._ending(scene)):
            if not await self._take(step):
                return

    async def clean_up(self) -> list[str]:
        """Undo what is not undone yet, then look whether anything stayed. Returns what went wrong with that."""
        wrong = []
        try:
            async with asyncio.timeout(_CLEANUP_TIMEOUT_S):
                await self._undone()
        except Exception as error:  # noqa: BLE001 - outermost: the sweep below removes what this could not
            wrong.append(_sentence(error))
        left = await self._workspace.sweep() if self._workspace else []
        return wrong + ([f"left behind and then removed: {', '.join(left)}"] if left else [])

    def _undone(self) -> asyncio.Task[None]:
        """The one task that undoes everything: begun once, and not ended by an interruption of who waits for it."""
        if self._undoing is None:
            self._undoing = asyncio.create_task(self._undo.aclose())
        return self._undoing

    async def _take(self, step: Step) -> bool:
        result = StepResult(step.name, step.title, error="interrupted")
        self.results.append(result)
        self._reporter.begin(result)
        calls_before, started = self._calls.copy(), time.monotonic()
        try:
            async with asyncio.timeout(_STEP_TIMEOUT_S):
                result.detail = await step.action()
            result.ok, result.error = True, ""
        except TimeoutError:
            result.error = f"not done after {_STEP_TIMEOUT_S:g} s"
        except Exception as error:
            result.error = _sentence(error)
            log.debug("step %s", step.name, exc_info=error)
        finally:
            result.seconds = time.monotonic() - started
            result.calls = self._calls - calls_before
            result.calls.pop(_HEARTBEAT, None)
            self._reporter.end(result)
        return result.ok

    def _say_where(self, choice: frontends.Choice, workspace: Workspace) -> None:
        if choice.frontend == frontends.USER:
            why = f" ({choice.reason})" if choice.reason else ""
            self._reporter.say(f"No kernel block device{why}: writing and verifying over NVMe/TCP from user space.")
        else:
            self._reporter.say(
                f"The volume becomes a kernel block device (frontend {choice.frontend}, {choice.fs_type})."
            )
        self._reporter.say(f"Everything is in {workspace.folder} and goes away at the end.")

    def _scene(self, workspace: Workspace, frontend: str) -> Scene:
        settings = _settings(workspace, self._wish)
        csi = CsiClient(settings.csi_endpoint)
        node = Standalone(settings)
        return Scene(workspace, node, csi, self._reporter, frontend, self._wish.data_bytes, NODE_NAME)

    # --- steps -----------------------------------------------------------------------------------------------

    def _opening(self, scene: Scene) -> list[Step]:
        return [
            Step("start", "start the agent and its target", partial(self._start, scene)),
            Step("disks", "three file disks, one per tier", partial(_look_at_disks, scene)),
            Step("create", "CreateVolume: thin, on tier nvme", partial(_create, scene)),
            Step("publish", "ControllerPublish: open it to this node only", partial(_publish, scene)),
        ]

    def _ending(self, scene: Scene) -> list[Step]:
        return [
            Step("unpublish", "ControllerUnpublish: close it", partial(_unpublish, scene)),
            Step("delete", "DeleteVolume", partial(_delete, scene)),
            Step("stop", "stop agent and target, see that nothing is left", partial(self._stop, scene)),
        ]

    async def _start(self, scene: Scene) -> str:
        await scene.node.start()
        self._calls = scene.node.rpc.calls
        await scene.node.wait_ready(_READY_TIMEOUT_S)
        await scene.csi.wait_ready(_READY_TIMEOUT_S)
        info = await scene.csi.plugin_info()
        return f"{info.name} {info.vendor_version} answers"

    async def _stop(self, scene: Scene) -> str:
        await asyncio.shield(self._undone())
        left = await scene.workspace.sweep()
        if left:
            raise DemoFailed(f"left behind and then removed: {', '.join(left)}")
        return "no mount, device, process or file left"


async def _look_at_disks(scene: Scene) -> str:
    room = [f"{tier} {size(await scene.csi.capacity({'tier': tier}))}" for tier in TIERS]
    return "room for thin volumes: " + ", ".join(room)


async def _create(scene: Scene) -> str:
    parameters = {"tier": "nvme"} | ({} if scene.frontend == frontends.USER else {"frontend": scene.frontend})
    scene.volume_id = await scene.csi.create_volume(VOLUME_NAME, scene.size_bytes, parameters)
    return f"{scene.volume_id}, {size(scene.size_bytes)}"


async def _publish(scene: Scene) -> str:
    scene.context = dict(await scene.csi.publish(scene.volume_id, scene.node_name))
    return f"{scene.context['nqn']} at {scene.context['address']}:{scene.context['port']}"


async def _unpublish(scene: Scene) -> str:
    await scene.csi.unpublish(scene.volume_id, scene.node_name)
    return "no host may connect any more"


async def _delete(scene: Scene) -> str:
    await scene.csi.delete_volume(scene.volume_id)
    scene.volume_id = ""
    volumes = (await scene.csi.list_volumes()).entries
    if volumes:
        raise DemoFailed(f"{len(volumes)} volumes are still listed")
    return "no volumes left"


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, QuarryError) else f"{type(error).__name__}: {error}"


def _disk_files(workspace: Workspace) -> list[Path]:
    return [workspace.folder / f"{tier}.img" for tier in TIERS]


def _settings(workspace: Workspace, wish: Wish) -> Settings:
    folder = workspace.folder
    disk_bytes = max(2 * GIB, 12 * wish.data_bytes)
    disks = zip(_disk_files(workspace), TIERS, strict=True)
    return load_settings(
        state_dir=folder / "state",
        csi_endpoint=f"unix://{folder}/csi.sock",
        spdk_socket=wish.spdk_socket,
        node_name=NODE_NAME,
        nvmf_port=workspace.port,
        file_disks=tuple(f"{file}:{disk_bytes}:{tier}" for file, tier in disks),
        mount_roots=(folder / "csi",),
    )

"""A virtual machine of the lab: started by QEMU, commands run in it, gone without a trace at the end."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import hardware, relay, volatile
from tests.lab.image import Image, Kernel, ensure

BOOT_S = {"kvm": 60.0, "tcg": 300.0}
_PR_SET_PDEATHSIG = 1


class MachineError(Exception):
    """The machine did not start, or is gone."""


def accelerators() -> list[str]:
    """What to try, best first. QUARRY_LAB_ACCEL chooses; a paravirtual KVM cannot boot Debian's kernel."""
    chosen = os.environ.get("QUARRY_LAB_ACCEL")
    if chosen:
        return [chosen]
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists()
    return ["kvm", "tcg"] if usable else ["tcg"]


class Restarted(MachineError):
    """It was reset while a command ran; it is up again."""


class Machine:
    """`shares`: folders of this computer that appear read-only as /<name>; "checkout" is one of them.

    `disks`: the machine has those of tests.lab.hardware too, blank.

    `with Machine(image, shares) as machine`. The disk starts from the image each time, its changes are thrown away.
    """

    def __init__(
        self,
        image: Image,
        shares: Mapping[str, Path],
        *,
        memory_mib: int = 2048,
        accelerator: str = "tcg",
        one_thread: bool = False,
        disks: bool = False,
    ) -> None:
        self._image = image
        self._shares = dict(shares)
        self._memory_mib = memory_mib
        self._accelerator = accelerator
        self._one_thread = one_thread
        self._disks = disks
        self._folder = Path(tempfile.mkdtemp(prefix="quarry-lab-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        self._relay: relay.Relay | None = None
        self._media: volatile.Media | None = None
        self.kernel = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Boot; returns when commands can be run. Raises MachineError with the end of the console."""
        if shutil.which("qemu-system-x86_64") is None:
            raise SystemExit("make lab needs qemu-system-x86_64: apt install qemu-system-x86")
        sizes = {name: size << 20 for name, size in hardware.VOLATILE_MIB.items()} if self._disks else {}
        self._media = volatile.Media(self._folder / hardware.MEDIA, sizes)
        with (self._folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        deadline = time.monotonic() + BOOT_S[self._accelerator]
        self._connect(deadline)
        self._relay = relay.Relay(self._folder, self._media)
        self.kernel = str(self._receive(deadline)["ready"])

    def stop(self) -> None:
        """Switch it off, at once: nothing in it is kept."""
        self._socket.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._relay is not None:
            self._relay.close()
        if self._media is not None:
            self._media.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        output: Callable[[str], None] = lambda text: print(text, end="", flush=True),
    ) -> int:
        """Run a command in the machine, passing on its output. Its exit status; 124 when it took too long.

        Restarted when the machine was reset meanwhile.
        """
        request = {"argv": list(argv), "env": dict(env or {}), "timeout_s": timeout_s}
        self._socket.settimeout(timeout_s)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout_s + 30
        while "exit" not in (message := self._receive(deadline)):
            if "ready" in message:
                raise Restarted(f"the machine was reset:\n{self.console()}")
            output(message["out"])
        return int(message["exit"])

    def console(self, lines: int = 40) -> str:
        """The end of what QEMU wrote, and of what kernel and boot wrote."""
        written = [self._folder / name for name in ("qemu.log", "console.log")]
        texts = [file.read_text(errors="replace").splitlines()[-lines:] for file in written if file.exists()]
        return "\n".join(line for text in texts for line in text)

    def _acceleration(self) -> str:
        if self._accelerator != "tcg":
            return self._accelerator
        return f"tcg,thread={'single' if self._one_thread else 'multi'},tb-size=512"

    def _argv(self) -> list[str]:
        others = " ".join(name for name in self._shares if name != "checkout")
        kernel_line = "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off init=/usr/sbin/lab-init"
        if self._disks:
            kernel_line += f" {hardware.KERNEL_LINE}"
        argv = ["nice", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        # Plain "max": without some of its features (svm) this kernel shows the names of mount points as "xxx".
        argv += ["-M", "q35,hpet=off", "-accel", self._acceleration(), "-cpu", "max"]
        argv += ["-smp", "2", "-m", str(self._memory_mib)]
        argv += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)]
        argv += ["-append", f"{kernel_line} -- {others}"]
        argv += ["-drive", f"file={self._image.disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
        argv += ["-serial", f"file:{self._folder}/console.log"]
        argv += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=lab,name=lab"]
        argv += ["-chardev", f"socket,id=lab,path={self._folder}/lab.sock,server=on,wait=off"]
        argv += relay.argv(self._folder)
        argv += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
        for name, folder in self._shares.items():
            options = "security_model=none,readonly=on,multidevs=remap"
            argv += ["-virtfs", f"local,path={folder},mount_tag={name},{options}"]
        return [*argv, *(hardware.argv(self._folder) if self._disks else ())]

    def _connect(self, deadline: float) -> None:
        while True:
            try:
                self._socket.connect(str(self._folder / "lab.sock"))
            except (FileNotFoundError, ConnectionRefusedError):
                self._check(deadline)
                time.sleep(0.05)
            else:
                return

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._check(deadline)
            self._socket.settimeout(1.0)
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            if not chunk:
                status = self._process.wait(10) if self._process is not None else None
                raise MachineError(f"the machine is gone (QEMU ended with {status}):\n{self.console()}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _check(self, deadline: float) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise MachineError(f"QEMU ended with {self._process.returncode}:\n{self.console()}")
        if time.monotonic() > deadline:
            raise MachineError(f"the machine does not answer:\n{self.console()}")


def boot(kernel: Kernel, shares: Mapping[str, Path]) -> Machine:
    """A started machine with that kernel, by the first accelerator that boots it."""
    image = ensure(kernel)
    choices = accelerators()
    for accelerator in choices:
        machine = Machine(
            image,
            shares,
            memory_mib=kernel.memory_mib,
            accelerator=accelerator,
            one_thread=kernel.one_thread,
            disks=kernel.disks,
        )
        try:
            machine.start()
        except BaseException as error:
            machine.stop()
            if isinstance(error, MachineError) and accelerator != choices[-1]:
                continue
            raise
        return machine
    raise MachineError("no accelerator to try")


def _die_with_parent() -> None:
    """In the child: also a killed runner leaves no machine behind. Its own session: Ctrl-C is the runner's."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

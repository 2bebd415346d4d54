"""`make lab`: builds the image when needed, boots a machine and runs tests/lab/inside in it.

`python -m tests.lab [PYTEST ARGUMENTS]`, or `python -m tests.lab --exec COMMAND ...` for anything else in the machine.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import image, spdk
from tests.lab.machine import Machine, Restarted, boot

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = float(os.environ.get("QUARRY_LAB_TIMEOUT_S", "3600"))
TESTS = ["python3", "-m", "pytest", "-v", "--tb=short", "-o", "addopts=--strict-markers --import-mode=importlib"]
LEFT_OVER = "left to a newer kernel"
"""What tests/lab/inside/conftest.py says when there are."""
LATER = "wait for a power cut"
"""The same, when there are tests of one: with QUARRY_LAB_BOOT=1 they end in it, with 2 they look at what is left."""
TESTS += ["-p", "no:cacheprovider", "-o", "timeout=600", "--durations=0", "--durations-min=1", "tests/lab/inside"]


NOTHING_COLLECTED = 5


def main(argv: list[str]) -> int:
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("make lab needs Python 3.11: the machine's own (Debian 12) uses this environment's packages")
    if argv[:1] == ["--refresh"]:
        for kernel in (image.USUAL, image.NEWER):
            image.ensure(kernel, refresh=True)
        argv = argv[1:]
    chosen = os.environ.get("QUARRY_LAB_KERNEL", "")
    if argv[:1] == ["--exec"]:
        return run(image.NEWER if chosen == "newer" else image.USUAL, argv[1:])[0]
    statuses = []
    if chosen != "newer":
        status, left_over = run(image.USUAL, [*TESTS, *argv])
        statuses.append(status)
        if not left_over:
            return status
    if chosen != "usual":
        statuses.append(run(image.NEWER, [*TESTS, *argv])[0])
    return next((status for status in statuses if status not in (0, NOTHING_COLLECTED)), min(statuses))


def run(kernel: image.Kernel, command: list[str]) -> tuple[int, bool]:
    """Exit status of a command in a machine, and whether it left tests to a newer kernel."""
    began = time.monotonic()
    said: list[str] = []

    def output(text: str) -> None:
        print(text, end="", flush=True)
        said.append(text)

    env = {
        "PYTHONPATH": "/checkout:/packages",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "QUARRY_LAB": "1",
    }
    if spdk.find() is not None:
        env |= {"SPDK_TGT": "/spdk/spdk_tgt", "LD_LIBRARY_PATH": "/spdk/lib", "OPENSSL_CONF": "/dev/null"}
    with _machine(kernel) as machine:
        print(f"machine with Linux {machine.kernel} after {time.monotonic() - began:.0f} s", flush=True)
        status = machine.run(command, env=env, timeout_s=TIMEOUT_S, output=output)
        if LATER in "".join(said):
            status = cut_power(machine, command, env) or (0 if status == NOTHING_COLLECTED else status)
    print(f"exit status {status} after {time.monotonic() - began:.0f} s", flush=True)
    return status, LEFT_OVER in "".join(said)


def cut_power(machine: Machine, command: list[str], env: dict[str, str]) -> int:
    """Exit status of the tests before and after it."""
    try:
        return machine.run(command, env=env | {"QUARRY_LAB_BOOT": "1"}, timeout_s=TIMEOUT_S) or 1
    except Restarted:
        print("power cut; the machine is up again", flush=True)
        return machine.run(command, env=env | {"QUARRY_LAB_BOOT": "2"}, timeout_s=TIMEOUT_S)


@contextmanager
def _machine(kernel: image.Kernel) -> Iterator[Machine]:
    with spdk.shared() as folder:
        shares = {"checkout": CHECKOUT, "packages": Path(sysconfig.get_path("purelib"))}
        if folder is not None:
            shares["spdk"] = folder
        machine = boot(kernel, shares)
        try:
            yield machine
        finally:
            machine.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

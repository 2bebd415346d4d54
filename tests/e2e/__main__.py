"""`make e2e`: assembles the images, starts a machine inside this one, and runs tests/e2e in it.

`python -m tests.e2e [PYTEST ARGUMENTS]`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from tests.e2e import images, installation, machine, oci, programs
from tests.e2e.layers import Workshop
from tests.e2e.progress import BEGAN, began, say

TESTS = ["-v", "-s", "-x", "--tb=short", "-rs", "-o", "addopts=--strict-markers --import-mode=importlib"]
TESTS += ["-p", "no:cacheprovider", "-o", "timeout=600", "tests/e2e"]
ARCHIVE = "images.tar"


def main(argv: list[str]) -> int:
    lacking = programs.missing()
    if lacking:
        print(f"make e2e: {lacking}", file=sys.stderr)
        return 1
    _tell()
    for left_over in machine.sweep():
        say(f"left over by a run that was killed, removed: {left_over}")
    for each in (signal.SIGINT, signal.SIGTERM):  # the first also when a shell has it ignored, as in the background
        signal.signal(each, _interrupt)
    inside = machine.Machine()
    status, left = 1, list[str]()
    try:
        _assemble(inside.run / ARCHIVE)
        env = os.environ | {"PATH": programs.search_path(), "QUARRY_E2E_RUN": str(inside.run)}
        env |= {
            BEGAN: str(began()),
            "TMPDIR": str(_folder(inside.run / "tmp")),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        say("the machine: processes, mounts, network and cgroups of its own")
        status = inside.execute([sys.executable, "-m", "pytest", *TESTS, *argv], env)
    except KeyboardInterrupt:
        say("interrupted: cleaning up")
        status = 130
    finally:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        left = inside.remove()
    say(f"machine removed, left behind: {', '.join(left) or 'nothing'}")
    say(f"free hugepages: {programs.kernel().free_hugepages_mib} MiB")
    return status or (1 if left else 0)


def _tell() -> None:
    """What was found and what comes of it."""
    for group, names in programs.GROUPS.items():
        folders = sorted({str(programs.need(each).parent) for each in names})
        print(f"{group:14} {' '.join(names)}\n{'':14} in {', '.join(folders)}")
    print(f"{'nvmf_tgt':14} {programs.nvmf_tgt() or 'none: the embedded target alone'}")
    kernel = programs.kernel()
    print(
        f"{'this kernel':14} NVMe/TCP: {'yes' if kernel.nvme_tcp else 'no'}, "
        f"free hugepages: {kernel.free_hugepages_mib} MiB"
    )
    for number, each in enumerate(installation.flavours(), 1):
        print(f"installation {number} {each.says}")


def _assemble(archive: Path) -> None:
    say("images, by the steps of the Dockerfile (those that changed)")
    with contextlib.closing(Workshop(images.cache())) as workshop:
        oci.write(installation.assemble(images.Assembly(workshop)), archive)
        workshop.sweep()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

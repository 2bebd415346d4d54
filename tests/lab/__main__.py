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
from tests.lab.machine import Machine, boot

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = float(os.environ.get("QUARRY_LAB_TIMEOUT_S", "3600"))
TESTS = ["python3", "-m", "pytest", "-v", "--tb=short", "-o", "addopts=--strict-markers --import-mode=importlib"]
TESTS += ["-p", "no:cacheprovider", "-o", "timeout=600", "--durations=0", "--durations-min=1", "tests/lab/inside"]


def main(argv: list[str]) -> int:
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("make lab needs Python 3.11: the machine's own (Debian 12) uses this environment's packages")
    began = time.monotonic()
    if argv[:1] == ["--refresh"]:
        image.ensure(refresh=True)
        argv = argv[1:]
    with _machine() as machine:
        print(f"machine with Linux {machine.kernel} after {time.monotonic() - began:.0f} s", flush=True)
        command = argv[1:] if argv[:1] == ["--exec"] else TESTS + argv
        env = {
            "PYTHONPATH": "/checkout:/packages",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "QUARRY_LAB": "1",
        }
        if spdk.find() is not None:
            env |= {"SPDK_TGT": "/spdk/spdk_tgt", "LD_LIBRARY_PATH": "/spdk/lib", "OPENSSL_CONF": "/dev/null"}
        status = machine.run(command, env=env, timeout_s=TIMEOUT_S)
    print(f"exit status {status} after {time.monotonic() - began:.0f} s", flush=True)
    return status


@contextmanager
def _machine() -> Iterator[Machine]:
    with spdk.shared() as folder:
        shares = {"checkout": CHECKOUT, "packages": Path(sysconfig.get_path("purelib"))}
        if folder is not None:
            shares["spdk"] = folder
        machine = boot(image.ensure(), shares)
        try:
            yield machine
        finally:
            machine.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

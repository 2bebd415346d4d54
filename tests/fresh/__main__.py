"""`make fresh`: the first commands of somebody new, and what depends on the machine, on Debian as it is delivered.

`python -m tests.fresh [--suite SUITE]... [--as root|user] [--demo] [--exec COMMAND]`
"""

from __future__ import annotations

import argparse
import time

from tests.fresh.machine import MIRROR, SUITES, fresh, missing

FOR_USERS = "python3-venv e2fsprogs xfsprogs"
"""What an ordinary user asks the administrator for: `make` says so."""
DEMO = ("make demo",)
MOUNTS_AND_CSI = "tests/unit/volumes_node tests/unit/host tests/csi tests/test_demo.py"
EVERYTHING = (
    "make setup",
    "make demo",
    ".venv/bin/quarry doctor",
    f".venv/bin/python -m pytest {MOUNTS_AND_CSI} --ignore tests/csi/test_sanity.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fresh", description=__doc__)
    parser.add_argument("--suite", action="append", help=f"Debian's name; more than one is fine ({' '.join(SUITES)})")
    parser.add_argument("--as", dest="who", choices=("root", "user"), help="only as this one (default: both)")
    parser.add_argument("--demo", action="store_true", help="the demo only")
    parser.add_argument("--exec", dest="command", help="this command instead")
    chosen = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"make fresh cannot run here: {reason}")
    print(f"Debian from {MIRROR}; what is committed here is tested, nothing else", flush=True)
    commands = (chosen.command,) if chosen.command else DEMO if chosen.demo else EVERYTHING
    failed = []
    for suite in chosen.suite or SUITES:
        for who in [chosen.who] if chosen.who else ["root", "user"]:
            began = time.monotonic()
            wrong = tried(suite, commands, user=who == "user")
            failed += [f"{suite} as {who}: {command}" for command in wrong]
            print(
                f"--- {suite} as {who}: {'FAILED' if wrong else 'fine'}, {time.monotonic() - began:.0f} s", flush=True
            )
    if failed:
        raise SystemExit("failed:\n  " + "\n  ".join(failed))


def tried(suite: str, commands: tuple[str, ...], *, user: bool = False) -> list[str]:
    """Those of the commands that failed on a fresh machine. What an ordinary user cannot install is there already."""
    with fresh(suite, user=user) as machine:
        install = f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {FOR_USERS} >/dev/null"
        if user and machine.as_root(install):
            return [install]
        wrong = []
        for command in commands:
            print(f"--- {suite} as {'user' if user else 'root'}: {command}", flush=True)
            if machine.run(command):
                wrong.append(command)
        return wrong


if __name__ == "__main__":
    main()

"""`make kube`: says what is here of a cluster, and runs what is tested on one.

`python -m tests.kube [PYTEST ARGUMENTS]`. Ends with 1 where there is no API server.
"""

from __future__ import annotations

import sys

import pytest

from tests.contract.targets import find_spdk_tgt

from . import control_plane, sidecars

FOLDERS = ["tests/unit/store", "tests/kube", "tests/k8s"]


def main(argv: list[str]) -> int:
    found = {name: control_plane.find(name) for name in (*control_plane.PROGRAMS, control_plane.CONTROLLER_MANAGER)}
    found |= {
        name: sidecars.find(name) for name in (*sidecars.PROGRAMS, sidecars.MONITOR, sidecars.SNAPSHOT_CONTROLLER)
    }
    found["CRDs of external-snapshotter"] = ", ".join(str(each.parent) for each in sidecars.snapshot_definitions()[:1])
    found["spdk_tgt"] = find_spdk_tgt()
    for name, path in found.items():
        print(f"{name:40} {path or 'absent'}", flush=True)
    why = control_plane.missing()
    if why:
        print(f"make kube needs a Kubernetes API server: {why}", file=sys.stderr)
        return 1
    chosen = [each for each in argv if each.startswith("tests")]
    return int(pytest.main(["-vv", "-rs", "--durations=0", "--durations-min=5", *([] if chosen else FOLDERS), *argv]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""csi-sanity, the conformance suite of the CSI community: found, or installed by Go at the version pinned here."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSION = "v5.5.0"
"""The release whose suite speaks CSI 1.12: earlier ones take GET_SNAPSHOT for a mistake, later ones speak 1.13."""

PACKAGE = f"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@{VERSION}"
INSTALL_TIMEOUT_S = 300


class Missing(Exception):
    """There is no suite here; says why."""


@cache
def find() -> Path:
    """The program: CSI_SANITY, else the pinned version, which Go installs into the user's cache. Raises Missing."""
    if given := os.environ.get("CSI_SANITY"):
        return Path(given)
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quarry" / f"csi-sanity-{VERSION}"
    program = cached / "csi-sanity"
    if not program.exists():
        _install(cached)
    return program


def _install(folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise Missing("csi-sanity is not named by CSI_SANITY, and there is no Go to install it")
    try:
        done = subprocess.run(
            [go, "install", PACKAGE],
            env=os.environ | {"GOBIN": str(folder)},
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"go install {PACKAGE} took more than {INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        raise Missing(f"go install {PACKAGE} failed: {done.stderr.strip()[-300:]}")


@dataclass(frozen=True)
class Report:
    """Names of the specs by outcome."""

    passed: list[str]
    failed: list[str]
    skipped: list[str]

    @classmethod
    def read(cls, junit: Path) -> Report:
        """From the file that `-ginkgo.junit-report` wrote. Specs that were filtered out or are pending do not count."""
        outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
        for case in ElementTree.parse(junit).getroot().iter("testcase"):
            name, status = case.get("name", ""), case.get("status", "")
            if not name.startswith("[It]") or status == "pending" or _is_filtered(case):
                continue
            outcomes[status if status in ("passed", "skipped") else "failed"].append(name.removeprefix("[It] "))
        return cls(**outcomes)


def _is_filtered(case: ElementTree.Element) -> bool:
    skipped = case.find("skipped")
    return case.get("status") == "skipped" and (skipped is None or skipped.get("message", "") in ("", "skipped"))

"""The manifest fits the OpenAPI schemas of the three latest minor versions of Kubernetes, without a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .manifest import MINORS, RENDERED, Object, load, rendered

_NOT_KUBERNETES = "snapshot.storage.k8s.io/"
"""Whose schemas are external-snapshotter's; the class has a driver and a policy."""


def _published(minor: str) -> Path:
    """The schemas in Kubernetes' own sources of a version, as `go mod download k8s.io/kubernetes@v...` leaves them."""
    cache = Path(os.environ.get("GOMODCACHE") or Path.home() / "go" / "pkg" / "mod") / "k8s.io"
    found = sorted(cache.glob(f"kubernetes@v{minor}.*/api/openapi-spec/v3"))
    if not found:
        pytest.skip(f"no k8s.io/kubernetes@v{minor} in {cache} (docs/testing.md)")
    return found[-1]


@pytest.fixture(params=MINORS)
def schemas(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The schemas of one version, laid out as kubectl-validate reads them."""
    if shutil.which("kubectl-validate") is None:
        pytest.skip("no kubectl-validate on PATH (docs/testing.md)")
    folder = tmp_path / "schemas"
    for file in _published(request.param).glob("*_openapi.json"):
        match file.name.removesuffix("_openapi.json").split("__"):
            case ["api", _] | ["apis", _, _] as parts:
                place = folder.joinpath(*parts[:-1], f"{parts[-1]}.json")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
    return folder


def _validate(objects: list[Object], schemas: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    # Kinds that the given schemas lack would be looked up in those of an old version that the program carries.
    argv = ["kubectl-validate", "--local-schemas", schemas, "--version", "1.23", file]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_manifest_fits(schemas: Path, tmp_path: Path) -> None:
    objects = [each for each in rendered() if not each["apiVersion"].startswith(_NOT_KUBERNETES)]
    assert len(objects) + 1 == len(rendered())
    done = _validate(objects, schemas, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("hostNetwork: true", "hostNet: true"),
        ("attachRequired: true", "attachRequired: 1"),
        ("failurePolicy:", "policy:"),
    ],
)
def test_mistakes_are_found(schemas: Path, tmp_path: Path, right: str, wrong: str) -> None:
    text = RENDERED.read_text()
    assert right in text
    objects = [each for each in load(text.replace(right, wrong)) if not each["apiVersion"].startswith(_NOT_KUBERNETES)]
    assert _validate(objects, schemas, tmp_path).returncode != 0

"""Every image of the installation, assembled here: the agent's by the Dockerfile's steps, others around a program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tests.e2e import dockerfile
from tests.e2e.dockerfile import Stage, Step
from tests.e2e.layers import Layer, Workshop
from tests.e2e.oci import Image

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PAUSE, APP = "localhost/e2e/pause:1", "localhost/e2e/app:1"

# Takes the arguments of nvmf_tgt that the manifest gives.
EMBEDDED = """\
#!/bin/sh
# The embedded target under the name that the manifest calls.
for argument; do case $argument in --rpc-socket=*) socket=${argument#*=} ;; esac; done
exec quarry target --rpc-socket "$socket" --state-dir "${socket%/*}/embedded"
"""


def cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quarry-e2e"
    return Path(os.environ.get("QUARRY_E2E_CACHE") or base).expanduser().absolute()


class Assembly:
    """Makes images out of layers."""

    def __init__(self, workshop: Workshop, context: Path = ROOT) -> None:
        self._workshop = workshop
        self._context = context
        self._ignore = (context / ".dockerignore").read_text()
        self._stages: dict[str, Image] = {}

    def of_dockerfile(self, reference: str) -> Image:
        """The last stage, after the stages before it, as a builder does."""
        stages = dockerfile.parse((self._context / "Dockerfile").read_text())
        for number, stage in enumerate(stages):
            built = self._stage(stage, reference)
            self._stages[stage.name or str(number)] = built
        return built

    def of_base(self, reference: str, command: Sequence[str]) -> Image:
        """Nothing but what the Dockerfile's last stage starts from."""
        base = dockerfile.parse((self._context / "Dockerfile").read_text())[-1].base
        return Image(reference, (self._workshop.base(base),), command=tuple(command), env={"PATH": PATH})

    def of_program(self, program: Path, reference: str) -> Image:
        """Nothing but a program, with the libraries it is linked to, as its entrypoint."""
        files = [(program, f"/{program.name}"), *((each, str(each)) for each in _libraries(program))]
        layer = self._workshop.copy((), files, f"{program.name} and {len(files) - 1} libraries")
        return Image(reference, (layer,), entrypoint=(f"/{program.name}",))

    def of_spdk(self, program: Path, reference: str) -> Image:
        """nvmf_tgt on PATH, with its libraries (docs/install.md)."""
        files = [(program, "/usr/local/bin/nvmf_tgt"), *((each, str(each)) for each in _libraries(program))]
        folders = {str(each.parent) for each in _libraries(program)}
        env = {"PATH": PATH, "LD_LIBRARY_PATH": ":".join(sorted(folders)), "OPENSSL_CONF": "/dev/null"}
        # As on every Linux: paths are told in their real form, /run.
        layer = self._workshop.copy((), files, f"nvmf_tgt and {len(files) - 1} libraries", {"/var/run": "/run"})
        return Image(reference, (layer,), env=env)

    def of_embedded(self, agent: Image, reference: str) -> Image:
        """The embedded target called nvmf_tgt: for kernels that can attach nothing else."""
        script = self._workshop.folder / "nvmf_tgt"
        script.write_text(EMBEDDED)
        script.chmod(0o755)
        layer = self._workshop.copy(
            agent.layers, [(script, "/usr/local/bin/nvmf_tgt")], "the embedded target as nvmf_tgt"
        )
        return Image(reference, (*agent.layers, layer), env=agent.env)

    def _stage(self, stage: Stage, reference: str) -> Image:
        built = Image(reference, (self._workshop.base(stage.base),), env={"PATH": PATH})
        for step in stage.steps:
            built = self._step(built, step)
        return built

    def _step(self, image: Image, step: Step) -> Image:
        layers, env = image.layers, image.env
        match step.kind:
            case "WORKDIR":
                return replace(image, workdir=step.text)
            case "ENV":
                name, _, value = step.text.partition("=")
                for known, held in env.items():
                    value = value.replace(f"${known}", held)
                return replace(image, env={**env, name: value.strip('"')})
            case "ENTRYPOINT":
                return replace(image, entrypoint=tuple(step.command()))
            case "CMD":
                return replace(image, command=tuple(step.command()))
            case "RUN":
                return replace(image, layers=(*layers, self._workshop.run(layers, step.text, env, image.workdir)))
            case _:
                return replace(image, layers=(*layers, self._copied(image, step)))

    def _copied(self, image: Image, step: Step) -> Layer:
        *sources, target = step.words()
        inside = str(PurePosixPath(image.workdir, target))  # without a "." or "/" at its end
        if stage := step.flags.get("from"):
            (path,) = sources
            return self._workshop.take(image.layers, self._stages[stage].layers, path, inside)
        files: list[tuple[Path, str]] = []
        for source in sources:
            files += self._seen(source, inside, into=target.endswith(("/", ".")) or len(sources) > 1)
        return self._workshop.copy(image.layers, files, str(step))

    def _seen(self, source: str, inside: str, *, into: bool) -> list[tuple[Path, str]]:
        """Files of the context that .dockerignore lets a builder see, and where they go."""
        path = self._context / source
        if path.is_file():
            found = [(path, f"{inside}/{path.name}" if into else inside)]
        else:
            found = [(each, f"{inside}/{each.relative_to(path)}") for each in path.rglob("*") if each.is_file()]
        seen = [pair for pair in found if dockerfile.admitted(self._ignore, str(pair[0].relative_to(self._context)))]
        if not seen:
            raise ValueError(f"COPY {source}: not there, or .dockerignore hides it")
        return seen


def _libraries(program: Path) -> list[Path]:
    """What a program is linked to, the loader included; of a static one nothing."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True)
    words = (line.split() for line in done.stdout.splitlines())
    return [
        Path(next(each for each in line if each.startswith("/"))) for line in words if any("/" in each for each in line)
    ]

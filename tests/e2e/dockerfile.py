"""A Dockerfile read: stages and their steps, as far as ours goes. What it does not know it refuses."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

KNOWN = frozenset({"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"})


@dataclass(frozen=True, slots=True)
class Step:
    """`COPY --from=build /a /b` is kind COPY, flags {"from": "build"}, text "/a /b"."""

    kind: str
    text: str
    flags: dict[str, str] = field(default_factory=dict)
    line: int = 0

    def words(self) -> list[str]:
        """The text as a list: in its JSON form as it is, else split as a shell would."""
        return list(map(str, json.loads(self.text))) if self.text.startswith("[") else shlex.split(self.text)

    def command(self) -> list[str]:
        """What an ENTRYPOINT or CMD runs: the JSON form as it is, any other by a shell."""
        return self.words() if self.text.startswith("[") else ["/bin/sh", "-c", self.text]

    def __str__(self) -> str:
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        return f"{self.kind} {flags}{self.text}"


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    steps: tuple[Step, ...]


def parse(text: str) -> list[Stage]:
    """All stages, in order. Raises ValueError, with the line, for what is not known here."""
    stages: list[Stage] = []
    for step in _steps(text):
        if step.kind == "FROM":
            base, *alias = step.text.split()
            stages.append(Stage(alias[1] if len(alias) == 2 else "", base, ()))
        elif not stages:
            raise ValueError(f"line {step.line}: {step.kind} before FROM")
        else:
            last = stages[-1]
            stages[-1] = Stage(last.name, last.base, (*last.steps, step))
    if not stages:
        raise ValueError("no FROM")
    return stages


def _steps(text: str) -> list[Step]:
    steps = []
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        began = began or number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1]
            continue
        steps.append(_step(pending + line, began))
        pending, began = "", 0
    return steps


def _step(line: str, number: int) -> Step:
    kind, _, rest = line.strip().partition(" ")
    if kind.upper() not in KNOWN:
        raise ValueError(f"line {number}: {kind} is not known here (known: {', '.join(sorted(KNOWN))})")
    flags: dict[str, str] = {}
    rest = rest.strip()
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        name, _, value = flag[2:].partition("=")
        flags[name], rest = value, rest.strip()
    allowed = {"from"} if kind.upper() == "COPY" else set[str]()
    if unknown := set(flags) - allowed:
        raise ValueError(f"line {number}: {kind} --{', --'.join(sorted(unknown))} is not known here")
    return Step(kind.upper(), rest, flags, number)


def admitted(ignore: str, path: str) -> bool:
    """Whether a .dockerignore of plain names, `*`, `!name` and `**/name` lets the builder see `path`."""
    seen, parts = True, path.split("/")
    for rule in filter(None, map(str.strip, ignore.splitlines())):
        keeps, pattern = rule.startswith("!"), rule.lstrip("!").strip("/")
        anywhere = pattern.startswith("**/") and pattern[3:] in parts
        if pattern == "*" or anywhere or parts[: len(pattern.split("/"))] == pattern.split("/"):
            seen = keeps
    return seen

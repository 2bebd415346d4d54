"""What tests ask an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.waiting import until


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    content_type: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


async def url_of(state_dir: Path) -> str:
    """The URL that the agent of `state_dir` wrote down, as soon as it has."""
    file = state_dir / "http.json"

    async def written() -> bool:
        return file.exists()

    await until(written, bool)
    return str(json.loads(file.read_text())["url"])


async def ask(url: str, path: str, **options: Any) -> Answer:
    answer = await asyncio.to_thread(requests.request, options.pop("method", "GET"), url + path, timeout=20, **options)
    return Answer(answer.status_code, answer.text, answer.headers["Content-Type"])


class Metrics:
    """One scrape, parsed; every family has a help text and a type."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        for family in self.families.values():
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with these labels, and perhaps others."""
        found = [value for keys, value in self.samples.get(name, {}).items() if frozenset(labels.items()) <= keys]
        assert len(found) == 1, f"{name}{labels}: {self.samples.get(name)}"
        return found[0]

    def all(self, name: str) -> Mapping[frozenset[tuple[str, str]], float]:
        return self.samples.get(name, {})


async def scrape(url: str) -> Metrics:
    answer = await ask(url, "/metrics")
    assert answer.status == 200
    return Metrics(answer.text)

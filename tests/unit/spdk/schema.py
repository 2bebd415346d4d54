"""SPDK's published description of its methods (schema/schema.json of the SPDK source), as a checker of requests."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

INTEGER_BITS = {"uint8": (0, 8), "uint16": (0, 16), "uint32": (0, 32), "uint64": (0, 64), "int32": (31, 31)}


def find_schema() -> Path | None:
    """SPDK_SCHEMA, else the folder shared beside the repository; None where neither is."""
    given = os.environ.get("SPDK_SCHEMA")
    path = Path(given) if given else Path(__file__).parents[4] / "shared" / "spdk" / "schema.json"
    return path if path.is_file() else None


class Schema:
    """Checks the params of a request against the description."""

    def __init__(self, path: Path) -> None:
        described = json.loads(path.read_text())
        self.methods = {method["name"]: method["params"] for method in described["methods"]}
        self.enums = {enum["name"]: {f["name"] for f in enum["fields"]} for enum in described["enums"]}
        self.objects = {thing["name"]: thing["fields"] for thing in described["objects"]}
        self.arrays = {array["name"]: array for array in described["arrays"]}

    def problems(self, method: str, params: dict[str, Any]) -> list[str]:
        """What is wrong with the call; empty when it is right."""
        if method not in self.methods:
            return [f"{method} is not a method of SPDK"]
        return self._object(method, self.methods[method], params)

    def _object(self, where: str, fields: list[dict[str, Any]], value: dict[str, Any]) -> list[str]:
        known = {field["name"]: field for field in fields}
        found = [f"{where}.{name} is unknown" for name in value if name not in known]
        found += [f"{where}.{f['name']} is missing" for f in fields if f.get("required") and f["name"] not in value]
        for name in value.keys() & known.keys():
            found += self._value(f"{where}.{name}", known[name]["type"], known[name].get("class", ""), value[name])
        return found

    def _value(self, where: str, kind: str, detail: str, value: Any) -> list[str]:
        if kind == "object":
            return self._object(where, self.objects[detail], value) if isinstance(value, dict) else [f"{where}: object"]
        if kind == "array":
            array = self.arrays[detail]
            if not isinstance(value, list) or len(value) > array["max_count"]:
                return [f"{where}: expected an array of at most {array['max_count']}"]
            item, inner = array["item_type"], array.get("class", "")
            return [
                problem for n, one in enumerate(value) for problem in self._value(f"{where}[{n}]", item, inner, one)
            ]
        return [] if self._fits(kind, detail, value) else [f"{where}: {value!r} is no {kind} {detail}"]

    def _fits(self, kind: str, detail: str, value: Any) -> bool:
        if kind == "enum":
            return value in self.enums[detail]
        if kind == "boolean":
            return isinstance(value, bool)
        if kind == "string":
            return isinstance(value, str)
        if kind == "uuid":
            return isinstance(value, str) and str(uuid.UUID(value)) == value
        below, bits = INTEGER_BITS[kind]
        lowest = -(2**below) if below else 0
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**bits

"""Settings files: YAML, one mapping, no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from agent.errors import InvalidArgument, shorten

BYTES_MAX = 1 << 20

_UNNAMED = ' in "<byte string>",'
"""How PyYAML calls bytes that it did not read itself."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which plain PyYAML would answer with the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shorten(key.value)!r} appears twice", key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`; an empty file is an empty one. Raises InvalidArgument."""
    try:
        with file.open("rb") as opened:
            data = opened.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise InvalidArgument("config", f"{file} has more than {BYTES_MAX} bytes", "is it a settings file?")
        document = yaml.load(data, Loader=_Loader)  # noqa: S506 - derived from SafeLoader
    except RecursionError:
        raise InvalidArgument("config", f"{file} is nested too deeply", "see docs/configuration.md") from None
    except OSError as error:
        raise InvalidArgument("config", f"cannot read {file}: {error.strerror}", "give a readable YAML file") from error
    except yaml.YAMLError as error:
        said = str(error).replace(_UNNAMED, "")
        raise InvalidArgument("config", f"{file} is not YAML: {said}", "see docs/configuration.md") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise InvalidArgument("config", f"{file} is not a mapping of settings", "see docs/configuration.md")
    return document

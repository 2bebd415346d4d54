"""Messages from their descriptors: random ones, and valid ones with some fields changed.

A `Vocabulary` is what makes them interesting: names, ids and paths that mean something to the agent under test, beside
those that mean trouble. Secrets (fields marked `csi_secret`) get marker strings and nothing else ever does, so wherever
a marker turns up later it was leaked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from agent.csi.pb import csi_pb2 as csi

SECRET_MARK = "MARK-of-a-secret"
_DEPTH_MAX = 4
_INTEGERS = (0, 1, -1, 2, 5, 4095, 1 << 20, 16 << 20, 64 << 20, 1 << 30, 1 << 40, 1 << 60, (1 << 60) + 1)
_HOSTILE = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "\u202e",
    "ünïcödé ☃ 𝄞",
    "%s%s%n",
    "${HOME}",
    "'; DROP TABLE volume; --",
    "../../../../etc/passwd",
    "/",
    "//",
    ".",
    "-o",
    "--help",
    "{}",
    "null",
    "x" * 63,
    "x" * 64,
    "x" * 128,
    "x" * 129,
    "☃" * 43,
    "x" * 255,
    "x" * 256,
    "x" * 4096,
    "/" + "x/" * 2100,
    "y" * 70_000,
    "nqn.2026-11.storage.quarry:vol:x",
    "vol-" + "0" * 32,
    "vol-" + "A" * 32,
    "snap-" + "0" * 32,
    "after:",
    "1" * 40,
    "1e309",
    "NaN",
    "٣",
)


@dataclass
class Vocabulary:
    """Words by the end of the field's name (`volume_id` finds `_id` unless there is a closer one)."""

    words: dict[str, list[str]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """Keys of maps that mean something: parameters, topology."""
    values: list[str] = field(default_factory=list)

    def choices(self, name: str) -> list[str]:
        matching = [suffix for suffix in self.words if name.endswith(suffix)]
        return self.words[max(matching, key=len)] if matching else []


class Generator:
    """Seeded: the same seed and vocabulary give the same messages."""

    def __init__(self, rng: random.Random, vocabulary: Vocabulary) -> None:
        self._rng = rng
        self._vocabulary = vocabulary

    def message(self, kind: type[Message]) -> Message:
        """A random message; each field is set more often than not."""
        made = kind()
        self._fill(made, 0)
        return made

    def mutated(self, message: Message) -> Message:
        """A copy with one to three fields, anywhere in it, cleared or set to something else."""
        copy = type(message)()
        copy.CopyFrom(message)
        for _ in range(self._rng.choice((1, 1, 1, 2, 3))):
            self._mutate(copy, 0)
        return copy

    # --- inside ----------------------------------------------------------------------------------------------

    def _fill(self, message: Message, depth: int) -> None:
        for each in message.DESCRIPTOR.fields:
            if self._rng.random() < 0.75:
                self._set(message, each, depth)

    def _mutate(self, message: Message, depth: int) -> None:
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        each = self._rng.choice(fields)
        below = list(self._submessages(message, each))
        if below and depth < _DEPTH_MAX and self._rng.random() < 0.6:
            self._mutate(self._rng.choice(below), depth + 1)
        elif self._rng.random() < 0.25:
            message.ClearField(each.name)
        else:
            if not is_repeated(each) or self._rng.random() < 0.5:
                message.ClearField(each.name)
            self._set(message, each, depth)

    @staticmethod
    def _submessages(message: Message, each: FieldDescriptor) -> Sequence[Message]:
        if each.message_type is None or is_map(each):
            return ()
        value = getattr(message, each.name)
        if is_repeated(each):
            return list(value)
        return (value,) if message.HasField(each.name) else ()

    def _set(self, message: Message, each: FieldDescriptor, depth: int) -> None:
        value: Any = getattr(message, each.name)
        count = self._rng.choice((0, 1, 1, 1, 2, 3, 20)) if is_repeated(each) else 1
        if is_map(each):
            for _ in range(count):
                self._set_entry(value, each)
        elif each.message_type is not None:
            if depth >= _DEPTH_MAX:
                return
            for _ in range(count):
                below = value.add() if is_repeated(each) else value
                below.SetInParent()
                self._fill(below, depth + 1)
        elif is_repeated(each):
            value.extend(self._scalar(each) for _ in range(count))
        else:
            setattr(message, each.name, self._scalar(each))

    def _set_entry(self, value: Any, each: FieldDescriptor) -> None:
        if is_secret(each):
            value[f"{SECRET_MARK}-key"] = f"{SECRET_MARK}-{self._rng.randrange(1 << 30)}"
            return
        key = self._rng.choice(self._vocabulary.keys) if self._rng.random() < 0.8 else self._text("")
        kind = entry_type(each).fields_by_name["value"]
        if kind.message_type is not None:
            self._fill(value[key], _DEPTH_MAX)
        else:
            known = self._vocabulary.values
            value[key] = self._rng.choice(known) if self._rng.random() < 0.7 else self._text("")

    def _scalar(self, each: FieldDescriptor) -> Any:
        if is_secret(each):
            return SECRET_MARK
        kind = each.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = self._text(each.name)
            return text.encode() if each.type == FieldDescriptor.TYPE_BYTES else text
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._rng.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            known = [value.number for value in each.enum_type.values]
            return self._rng.choice((*known, *known, 99, -1, (1 << 31) - 1))
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self._rng.choice((0.0, -1.0, float("nan"), float("inf")))
        return self._integer(each)

    def _integer(self, each: FieldDescriptor) -> int:
        wide = each.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
        signed = each.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32)
        bits = 64 if wide else 32
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        value = self._rng.choice((*_INTEGERS, low, high, self._rng.randint(low, high)))
        return min(max(value, low), high)

    def _text(self, name: str) -> str:
        known = self._vocabulary.choices(name)
        draw = self._rng.random()
        if known and draw < 0.7:
            return self._rng.choice(known)
        if draw < 0.9:
            return self._rng.choice(_HOSTILE)
        length = self._rng.choice((1, 8, 36, 130))
        return "".join(self._character() for _ in range(length))

    def _character(self) -> str:
        return chr(self._rng.choice((self._rng.randrange(32, 127), self._rng.randrange(0xD7FF))))


def is_repeated(each: FieldDescriptor) -> bool:
    return bool(each.is_repeated)


def entry_type(each: FieldDescriptor) -> Descriptor:
    assert each.message_type is not None
    return each.message_type


def is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and bool(each.message_type.GetOptions().map_entry)


def is_secret(each: FieldDescriptor) -> bool:
    """Whether the specification marks the field as holding secrets."""
    return bool(each.GetOptions().Extensions[csi.csi_secret])

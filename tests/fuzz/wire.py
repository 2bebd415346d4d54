"""Broken bytes: a serialised request after something happened to it on the way."""

from __future__ import annotations

import random
from collections.abc import Callable

_BIG_VARINT = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"


def mutated(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    """`raw` after one to four mutations; `other` is what is spliced in. The result may still be valid."""
    for _ in range(rng.randint(1, 4)):
        raw = rng.choice(_MUTATIONS)(raw, other, rng)
    return raw


def _cut(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _cut_front(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw[rng.randrange(len(raw) + 1) :]


def _flip(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw) + 1)
    return raw[:place] + rng.randbytes(rng.choice((1, 2, 10, 300))) + raw[place:]


def _splice(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeat(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(raw) + 1)
    end = rng.randrange(start, len(raw) + 1)
    return raw[:start] + raw[start:end] * rng.choice((2, 3, 50)) + raw[end:]


def _unknown_field(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw + rng.choice((b"\x98\x06\x01", b"\xa2\x06\x03abc", b"\xa3\x06", b"\xa4\x06", b"\x00\x00"))


def _long_length(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw + b"\x0a" + rng.choice((_BIG_VARINT, b"\xff\xff\xff\xff\x07", b"\x7f"))


def _not_utf8(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    return raw + b"\x0a\x03" + rng.choice((b"\xff\xfe\xfd", b"\xed\xa0\x80", b"\xc0\x80a"))


def _deep(raw: bytes, _: bytes, rng: random.Random) -> bytes:
    """A message in a message in a message..., the parser's own limit is 100."""
    inner = b""
    for _ in range(rng.choice((10, 99, 101, 200))):
        size = len(inner)
        length = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
        inner = b"\x1a" + length + inner
    return raw + inner


_MUTATIONS: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    _cut,
    _cut_front,
    _flip,
    _flip,
    _insert,
    _splice,
    _repeat,
    _unknown_field,
    _long_length,
    _not_utf8,
    _deep,
)

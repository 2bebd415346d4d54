"""Cuts the byte stream of a JSON-RPC connection into JSON values, as SPDK's lib/jsonrpc does.

Values follow each other with or without white space. What can never become JSON is `Malformed`: there is no point
from which to go on, so the connection has to be closed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 256 * 1024
"""Size of the real target's receive buffer: a longer request closes the connection."""

MAX_VALUES = 8192
"""Most JSON values one request may hold (SPDK_JSONRPC_MAX_VALUES); a long one is only counted when it may exceed it."""

_SPACE = re.compile(r"[ \t\n\r]*")
_LITERALS = ("true", "false", "null")


class Malformed(Exception):
    """The stream is not JSON, or a request is larger than the target takes."""


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one with a key twice gets a member that no method knows, so that its user refuses it."""
    members = dict(pairs)
    if len(members) != len(pairs):
        members["\0duplicate"] = True
    return members


class RequestStream:
    """Feed bytes in, get JSON values out."""

    def __init__(self) -> None:
        self._text = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._json = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the values that are complete now. Raises Malformed."""
        try:
            self._text += self._utf8.decode(data)
        except UnicodeDecodeError as error:
            raise Malformed("not UTF-8") from error
        start = 0
        try:
            while True:
                start = _skip_space(self._text, start)
                if start == len(self._text):
                    break
                value, end = self._decode(start)
                if end < 0:
                    break
                start = end
                yield value
        finally:
            self._text = self._text[start:]
        if len(self._text) >= MAX_REQUEST_BYTES:
            raise Malformed("request too large")

    def _decode(self, start: int) -> tuple[Any, int]:
        """The value at `start` and where it ends; -1 when more bytes are needed."""
        try:
            value, end = self._json.raw_decode(self._text, start)
        except JSONDecodeError as error:
            if _may_continue(self._text, error):
                return None, -1
            raise Malformed(str(error)) from error
        except RecursionError as error:
            raise Malformed("nested too deeply") from error
        if end - start > MAX_REQUEST_BYTES or (end - start > MAX_VALUES and _count(value) > MAX_VALUES):
            raise Malformed("request too large")
        text = self._text[start:end]
        if "\\ud" in text or "\\uD" in text:
            _check_surrogates(value)
        return value, end


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _may_continue(text: str, error: JSONDecodeError) -> bool:
    """Whether the decoder failed only because the text ends too early."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = text[error.pos :]
    if not rest.strip():
        return True
    if "escape" in error.msg:
        return len(rest) < len("uXXXX\\uXXXX")
    if error.msg.startswith("Expecting value"):
        return rest == "-" or any(literal.startswith(rest) for literal in _LITERALS)
    return False


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 2 + sum(1 + _count(item) for item in value.values())
    if isinstance(value, list):
        return 2 + sum(_count(item) for item in value)
    return 1


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed("lone surrogate") from error

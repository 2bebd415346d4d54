"""The table of JSON-RPC methods of the embedded target and how their parameters are checked.

A method is declared with a `msgspec.Struct` for its parameters (unknown keys and wrong types refused, as
`spdk_json_decode_object` does) and a handler. Handlers raise `RpcFault` with the code the real target answers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class RpcFault(Exception):
    """An error answer: `code` is a negative errno or a JSON-RPC code, `message` the real target's text."""

    def __init__(self, code: int, message: str | None = None) -> None:
        self.code = code
        self.message = message if message is not None else os.strerror(-code)
        super().__init__(f"{self.message} ({code})")

    @classmethod
    def no_device(cls) -> RpcFault:
        """-19 "No such device", the usual answer for a name that does not exist."""
        return cls(-errno.ENODEV)


class Params(msgspec.Struct, forbid_unknown_fields=True):
    """Base of parameter structs. Use `field: int` for required, `field: int | None = None` for optional ones."""


class NoParams(Params):
    """For methods without parameters."""


P = TypeVar("P", bound=Params)
DECODE_FAULT = RpcFault(INTERNAL_ERROR, "spdk_json_decode_object failed")
INVALID_PARAMETERS = RpcFault(INVALID_PARAMS, "Invalid parameters")


@dataclass(frozen=True, slots=True)
class Method:
    """`decode_fault` is what this method answers to parameters it cannot decode (it differs between methods)."""

    name: str
    params: type[Params]
    handler: Callable[[Any], Awaitable[Any]]
    decode_fault: RpcFault


class Methods:
    """Registry and dispatcher of methods."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def add(
        self,
        name: str,
        params: type[P],
        handler: Callable[[P], Awaitable[Any]],
        decode_fault: RpcFault = DECODE_FAULT,
    ) -> None:
        """Register `handler`; its return value becomes the JSON `result`."""
        if name in self._methods:
            raise ValueError(f"method {name} registered twice")
        self._methods[name] = Method(name, params, handler, decode_fault)

    def names(self) -> list[str]:
        return list(self._methods)

    async def call(self, name: str, params: object) -> Any:
        """Run one call. Raises RpcFault, nothing else on bad input."""
        method = self._methods.get(name)
        if method is None:
            raise RpcFault(METHOD_NOT_FOUND, "Method not found")
        try:
            decoded = msgspec.convert({} if params is None else params, method.params)
        except msgspec.ValidationError as error:
            raise RpcFault(method.decode_fault.code, method.decode_fault.message) from error
        return await method.handler(decoded)

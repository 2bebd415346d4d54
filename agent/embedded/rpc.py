"""The table of JSON-RPC methods of the embedded target and how their parameters are checked.

A method is declared with a `msgspec.Struct` for its parameters (unknown keys and wrong types refused, as
`spdk_json_decode_object` does) and a handler. Handlers raise `RpcFault` with the code the real target answers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


U8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0)]
I32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""Integer types of the published schema, for fields of parameter structs. U64_MAX is checked for every integer."""

U64_MAX = 2**64 - 1


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
    """`decode_fault` is the answer to parameters that cannot be decoded, `no_params_message` (of methods without
    parameters) to any at all; both differ between methods."""

    name: str
    params: type[Params]
    handler: Callable[[Any], Awaitable[Any]]
    decode_fault: RpcFault
    no_params_message: str | None = None


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
        *,
        no_params_message: str | None = None,
    ) -> None:
        """Register `handler`; its return value becomes the JSON `result`."""
        if name in self._methods:
            raise ValueError(f"method {name} registered twice")
        self._methods[name] = Method(name, params, handler, decode_fault, no_params_message)

    def names(self) -> list[str]:
        return list(self._methods)

    async def call(self, name: str, params: object) -> Any:
        """Run one call. Raises RpcFault, nothing else on bad input."""
        method = self._methods.get(name)
        if method is None:
            raise RpcFault(METHOD_NOT_FOUND, "Method not found")
        if method.params is NoParams and params is not None:
            # Not even an empty object: the real target looks whether the member is there at all.
            raise RpcFault(INVALID_PARAMS, method.no_params_message or f"{name} requires no parameters")
        try:
            decoded = msgspec.convert(_strict(params), method.params)
        except msgspec.ValidationError as error:
            raise RpcFault(method.decode_fault.code, method.decode_fault.message) from error
        return await method.handler(decoded)


def _strict(params: object) -> object:
    """`params` as SPDK's decoders see them: `null` and strings with NUL are errors, 1.0 and 1e2 are integers."""
    if params is None:
        return {}
    if not isinstance(params, dict):
        return params
    whole: dict[str, int] = {}
    for key, value in params.items():
        unusable = (isinstance(value, str) and "\0" in value) or (isinstance(value, int) and value > U64_MAX)
        if value is None or unusable:
            raise msgspec.ValidationError(f"{key} has no usable value")
        if isinstance(value, float) and value.is_integer():
            whole[key] = int(value)
    return {**params, **whole} if whole else params

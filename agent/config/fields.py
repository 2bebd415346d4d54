"""What settings are made of: types of fields with their units, and the base of sections."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from agent.config.errors import explained
from agent.errors import InvalidArgument, shorten
from agent.sizes import SOCKET_PATH_MAX_BYTES, parse_size

_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
"""As long as the name of a Kubernetes Node may be."""
_ZONE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
"""What CSI allows as the value of a topology key, and Kubernetes as that of a label."""


def _size(value: object) -> object:
    return reworded(parse_size, value) if isinstance(value, str) else value


def _not_empty(path: Any) -> Any:
    """An empty path would be the working directory."""
    if path == "":
        raise ValueError("the path is empty")
    return path


def _absolute(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("contains a NUL character")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{shorten(str(path))!r} names no home folder") from error


def _node_name(name: str) -> str:
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(f"{shorten(name)!r} is not 1 to 253 letters, digits, '.', '_' or '-' between alphanumerics")
    return name


def _zone(name: str) -> str:
    if name and not _ZONE.fullmatch(name):
        raise ValueError(f"{shorten(name)!r} is not 1 to 63 letters, digits, '.', '_' or '-' between alphanumerics")
    return name


def _endpoint(endpoint: str) -> str:
    path = endpoint.removeprefix("unix://")
    if path == endpoint or not path.startswith("/"):
        raise ValueError(f"{shorten(endpoint)!r} is not unix:// followed by an absolute path")
    if len(path.encode()) > SOCKET_PATH_MAX_BYTES:
        raise ValueError(
            f"the socket path has {len(path.encode())} bytes, a UNIX socket has at most {SOCKET_PATH_MAX_BYTES}"
        )
    return endpoint


def _http_address(address: str) -> str:
    if not address:
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{shorten(address)!r} is not HOST:PORT with a port of 0 to 65535, like 127.0.0.1:9810")
    try:
        ipaddress.IPv6Address(host[1:-1]) if host[:1] + host[-1:] == "[]" else ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{shorten(host)!r} is not an IPv4 address or an IPv6 address in brackets") from None
    return address


def _ip_address(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{shorten(address)!r} is not an IPv4 or IPv6 address") from None
    inner = getattr(found, "ipv4_mapped", None) or found
    if inner.is_unspecified or inner.is_multicast or str(inner) == "255.255.255.255":
        # SPDK lets a host in at the address of a listener only, and hosts are told this one to connect to.
        raise ValueError(f"{shorten(address)!r} is no address that a host can connect to: give one of this machine's")
    return str(found)


def listening_address(field: str, address: str) -> str:
    """`address` as settings have it. Raises InvalidArgument, naming `field`."""
    try:
        return _ip_address(address)
    except ValueError as error:
        raise InvalidArgument(field, str(error)) from None


def reworded(parse: Any, value: str) -> Any:
    """`parse(value)` for pydantic, which collects ValueError and adds the field's place."""
    try:
        return parse(value)
    except InvalidArgument as error:
        raise ValueError(f"{error.problem}; {error.remedy}") from error


AbsolutePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
Size = Annotated[int, Strict(), BeforeValidator(_size)]
NodeName = Annotated[str, AfterValidator(_node_name)]
Zone = Annotated[str, AfterValidator(_zone)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
HttpAddress = Annotated[str, AfterValidator(_http_address)]
IpAddress = Annotated[str, AfterValidator(_ip_address)]
Count = Annotated[int, Strict()]
Percent = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0)]
Seconds = Annotated[float, Strict(), Field(allow_inf_nan=False, gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(
    model: type[_Model], document: Mapping[str, Any], field: str, items: Mapping[str, type[BaseModel]]
) -> _Model:
    """`document` as `model`. Raises InvalidArgument; `items` are what the fields that are lists consist of."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise explained(model, error.errors(), field, items) from error

"""Every method of every service in the CSI specification, offered or not, from its own descriptors."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.message import Message

from agent.csi.pb import csi_pb2 as csi


@dataclass(frozen=True)
class Method:
    """`path` is what gRPC calls it, `name` is "Service/Method"."""

    path: str
    name: str
    request: type[Message]
    response: type[Message]
    streams: bool
    """Answers with a stream of responses."""


def _methods() -> tuple[Method, ...]:
    found = []
    for service in csi.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            found.append(
                Method(
                    path=f"/{service.full_name}/{method.name}",
                    name=f"{service.name}/{method.name}",
                    request=message_factory.GetMessageClass(method.input_type),
                    response=message_factory.GetMessageClass(method.output_type),
                    streams=method.server_streaming,
                )
            )
    return tuple(found)


METHODS = _methods()
BY_NAME = {method.name: method for method in METHODS}

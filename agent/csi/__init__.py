"""The Container Storage Interface v1.12.0 over grpc.aio: validate, call the domain, answer in protobuf. No decisions.

The way of a call: `server` (socket) -> `interceptor` (errors, log) -> `identity` | `controller` | `node` ->
`validation` and `parameters` (protobuf to domain) -> the domain behind `ports`. `client` is the other side.
"""

DRIVER_NAME = "csi.quarry.storage"
"""Name of the driver: in CSIDriver, StorageClass.provisioner and the kubelet's plugin registration."""

TOPOLOGY_NODE = "csi.quarry.storage/node"
"""Topology key with one value per node: the name of the node."""

TOPOLOGY_ZONE = "csi.quarry.storage/zone"
"""Topology key of the zone, of nodes that have one. All keys of a plugin have the same prefix (csi.proto, Topology)."""

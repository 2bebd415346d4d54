"""The benchmark: the agent through its CSI socket, beside the floors of the same target."""

import os

# Set before grpc is imported: the processes started later are other programs, gRPC need not survive the fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

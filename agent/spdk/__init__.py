"""Everything that knows SPDK: the JSON-RPC client, typed calls, supervision, and the embedded target."""

"""What an operator sees of an agent: its local HTTP endpoint, and the checks of `quarry doctor`.

Everything here only reads. Nothing of it is on the way of a CSI or SPDK call: those count plain numbers
(agent.tally), which are turned into metrics when somebody asks.
"""

ENDPOINT_FILE = "http.json"
"""In the state folder while an agent serves HTTP: {"url", "role", "node", "pid"} of its endpoint."""

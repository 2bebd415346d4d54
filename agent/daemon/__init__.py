"""The composition root: builds the parts for a role, starts them in order, stops them in the reverse order."""

from agent.daemon.standalone import Standalone

__all__ = ["Standalone"]

"""What goes on in the background on a node, beside what callers ask for.

Keepers of disks and pools are in `agent.pools`; those of a whole cluster in `agent.volumes.controller`.
"""

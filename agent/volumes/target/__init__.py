"""Volumes and snapshots on the target of this node: what is there, what should be, and the calls between.

Pools are `agent.pools`; what a host does with a volume is `agent.volumes.attach`.
"""

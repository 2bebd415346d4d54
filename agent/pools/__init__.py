"""Disks to pools: how a disk is reached, claimed, zeroed, kept an eye on, and how much room its pool has.

What lies in a pool (volumes, snapshots) and who asks for it belongs to `agent.volumes`.
"""

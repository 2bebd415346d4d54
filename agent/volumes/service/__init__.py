"""What callers ask for: volumes, snapshots, groups, and what they are made of. Wishes are recorded here.

Carrying them out is `agent.volumes.target`, or another node; this room knows neither target nor host.
"""

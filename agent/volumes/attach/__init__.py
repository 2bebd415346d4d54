"""The side of the host: a volume as a block device, its filesystem, its mounts, and holding its writes back.

Nothing here decides who may have a volume.
"""

"""Quarry: a storage node agent that turns disks into CSI volumes by driving SPDK."""

__version__ = "0.1.0"

"""Disks of this machine: what they are, whether something is on them."""

"""Logical volume stores of the embedded target: metadata journal, sparse data files, space accounting."""

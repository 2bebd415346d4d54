"""The embedded target: a small stand-in for `spdk_tgt` on file-backed disks, for laptops, demos and tests."""

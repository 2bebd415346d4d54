"""The lab: tests on a Linux kernel of our own in a QEMU virtual machine (docs/testing.md); `python -m tests.lab`."""

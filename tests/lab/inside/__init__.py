"""Tests that run in the lab's machine, as root and on its kernel. Elsewhere they are not collected (conftest.py)."""

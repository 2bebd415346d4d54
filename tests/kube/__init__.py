"""A package, so that its control plane ends with its tests."""

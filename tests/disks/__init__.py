"""A package, so that its target ends with its tests: it keeps a CPU busy for as long as it runs."""

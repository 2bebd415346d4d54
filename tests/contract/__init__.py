"""A package, so that its targets end with its tests: a real one keeps a CPU busy for as long as it runs."""

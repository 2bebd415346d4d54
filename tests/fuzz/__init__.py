"""Random, mutated and broken CSI requests against a running agent: what may never happen, whatever is asked."""

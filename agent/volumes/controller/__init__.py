"""What one controller knows and does of all nodes of a cluster, by the Kubernetes API alone."""

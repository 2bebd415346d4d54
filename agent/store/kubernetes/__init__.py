"""The store of a cluster: custom resources of the Kubernetes API."""

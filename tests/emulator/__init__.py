"""The Kubernetes API without Kubernetes: fabric8's mock server, for machines that have no kube-apiserver."""

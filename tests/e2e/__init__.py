"""The installation as real Pods: kubelet and containerd on a machine inside the machine (docs/testing.md)."""

"""NVMe over TCP: the bytes on the wire, which hosts and the embedded target share, and a user-space initiator."""

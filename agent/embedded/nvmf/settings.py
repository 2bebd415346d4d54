"""What `nvmf_create_transport` sets, with the defaults of the real target."""

from __future__ import annotations

from dataclasses import dataclass

from agent.nvmf.identify import OptionalCommands

KAS_UNIT_MS = 100
DISCOVERY_KATO_MS = 120_000
ASSOCIATION_TIMEOUT_S = 120.0
"""How long a disabled controller keeps its association (NVMe over Fabrics in Base 2.0, section 6.3)."""
CONNECTIONS_UNASSOCIATED_MAX = 1024
"""TCP connections without a Connect at one time; more are closed at once."""
WRITE_BUFFER_BYTES = 1 << 20
"""A connection whose host reads so slowly that this much waits for it is not read from either."""
ADMIN_CAPSULE_BYTES = 8192
ASYNC_EVENTS_MAX = 4
FIRMWARE = "26.05"


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Sizes in bytes; `kas` is the keep alive granularity in units of 100 ms, `min_kato` is in milliseconds.

    `connect_timeout_s`, how long a TCP connection may stay without an accepted Connect, is ours and in no RPC.
    """

    max_queue_depth: int = 128
    max_aq_depth: int = 128
    max_io_qpairs_per_ctrlr: int = 127
    in_capsule_data_size: int = 4096
    max_io_size: int = 131072
    c2h_success: bool = True
    kas: int = 100
    min_kato: int = 10_000
    abort_timeout_sec: int = 1
    sock_priority: int = 0
    ack_timeout: int = 0
    zcopy: bool = False
    dif_insert_or_strip: bool = False
    data_wr_pool_size: int = 0
    disable_command_passthru: bool = False
    iobuf_small_cache_size: int = 0xFFFFFFFF
    iobuf_large_cache_size: int = 0xFFFFFFFF
    masked: OptionalCommands = OptionalCommands.NONE
    """Offered to no host, and refused."""
    connect_timeout_s: float = 10.0

    def keep_alive_ms(self, asked_ms: int) -> int:
        """The keep alive timeout that a host gets which asks for `asked_ms`, not 0."""
        step = self.kas * KAS_UNIT_MS
        wanted = self.min_kato if asked_ms <= self.min_kato else asked_ms
        return -(-wanted // step) * step

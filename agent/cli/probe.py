"""`quarry probe`: checks the path to one NVMe/TCP subsystem from user space."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import configure_logs, log_options, output_option, print_json, print_table
from agent.errors import InvalidArgument

if TYPE_CHECKING:
    from agent.nvmf.probe import ProbeReport

NVME_TCP_PORT = 4420
"""Port that NVMe over TCP uses by convention (IANA: nvme)."""

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^:\[\]\s]+))(?::(?P<port>\d{1,5}))?")
_PERCENTILES = (50, 90, 99, 100)


@click.command(short_help="Check the path to an NVMe/TCP subsystem.")
@click.argument("address", metavar="ADDRESS[:PORT]")
@click.argument("nqn")
@click.option("--host-nqn", metavar="NQN", help="Connect as this host [default: one made up for this probe].")
@click.option("--samples", type=click.IntRange(0, 100_000), default=100, show_default=True, help="Reads to time.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), default=5.0, show_default=True, metavar="SECONDS")
@output_option
@log_options("warning")
def probe(
    address: str, nqn: str, host_nqn: str | None, samples: int, timeout_s: float, output: str, **logging: str | None
) -> None:
    """Check the path to an NVMe/TCP subsystem: connect, identify, time reads.

    Reads only, and does not touch the kernel's NVMe driver. IPv6 addresses go in brackets: [fd00::1]:4420.
    """
    configure_logs(logging["log_level"], logging["log_format"])
    host, port = parse_address(address)
    import asyncio

    from agent.nvmf.probe import probe as probe_path

    report = asyncio.run(
        probe_path(host, port, nqn, hostnqn=host_nqn, samples=samples, timeout_s=timeout_s),
    )
    if output == "json":
        print_json(document(report))
    else:
        _print_report(f"{address} {nqn}", report)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `10.0.0.1`, `10.0.0.1:4421`, `name:4420`, `[fd00::1]` or `[fd00::1]:4420`."""
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"] or NVME_TCP_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise InvalidArgument("ADDRESS", f"{text!r} is no address", "write HOST, HOST:PORT or [IPV6]:PORT")
    return match["six"] or match["host"], port


def percentile(sorted_values: list[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really measured. `sorted_values` is not empty."""
    rank = max(1, -(-len(sorted_values) * percent // 100))
    return sorted_values[int(rank) - 1]


def document(report: ProbeReport) -> dict[str, Any]:
    """The report as JSON: times in seconds, sizes in bytes."""
    latencies = sorted(report.read_latencies_s)
    return {
        "connect_seconds": report.connect_s,
        "identify_seconds": report.identify_s,
        "controller": {
            "model": report.controller.model,
            "serial": report.controller.serial,
            "firmware": report.controller.firmware,
            "controller_id": report.controller.controller_id,
        },
        "namespaces": [
            {"nsid": ns.nsid, "uuid": str(ns.uuid), "size_bytes": ns.size_bytes, "block_bytes": ns.block_bytes}
            for ns in report.namespaces
        ],
        "reads": len(latencies),
        "read_seconds": {f"p{p}": percentile(latencies, p) for p in _PERCENTILES} if latencies else {},
    }


def _print_report(title: str, report: ProbeReport) -> None:
    facts = document(report)
    controller = facts["controller"]
    click.echo(title)
    click.echo(f"connect   {_ms(facts['connect_seconds'])}")
    click.echo(
        f"identify  {_ms(facts['identify_seconds'])}  {controller['model']}, serial {controller['serial']}, "
        f"firmware {controller['firmware']}, controller {controller['controller_id']}"
    )
    if facts["read_seconds"]:
        times = "  ".join(f"{'max' if name == 'p100' else name} {_ms(s)}" for name, s in facts["read_seconds"].items())
        click.echo(f"read      {times}  ({facts['reads']} reads)")
    rows = [
        [str(ns["nsid"]), ns["uuid"], _size(ns["size_bytes"]), str(ns["block_bytes"])] for ns in facts["namespaces"]
    ]
    click.echo()
    if rows:
        print_table(["NSID", "UUID", "SIZE", "BLOCK"], rows, right=(0, 2, 3))
    else:
        click.echo("no namespaces: this host sees no volume behind the subsystem")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _size(size_bytes: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"

"""`quarry doctor`: what of a machine is as Quarry needs it, and what to do about the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from agent.cli.asking import PLUGIN
from agent.cli.exit_codes import ExitCode
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.cli.paths import PATH
from agent.cli.tables import print_rich
from agent.errors import InvalidArgument, Unavailable, visible

_PATH = PATH

IN_CLUSTER = {
    "spdk_socket": Path("/var/run/quarry/spdk.sock"),
    "csi_endpoint": "unix:///var/lib/kubelet/plugins/csi.quarry.storage/csi.sock",
}
"""Where the manifest has them; used under Kubernetes unless they are given."""


@click.command(short_help="Check this machine, the target and the agent.")
@click.option(
    "--for", "purpose", type=click.Choice(["node"]), help="Check only what must hold before the agent starts."
)
@click.option("--config", type=_PATH, metavar="FILE", help="Settings of the agent; flags win over the file.")
@click.option("--state-dir", type=_PATH, metavar="DIR", help="State folder of the agent [default: /var/lib/quarry].")
@click.option("--spdk-socket", type=_PATH, metavar="PATH", help="JSON-RPC socket of the SPDK target.")
@click.option("--csi-endpoint", metavar="unix:///PATH", help="Where the agent serves CSI.")
@click.option("--nvmf-port", type=click.IntRange(1, 65535), metavar="PORT", help="Port of the exports [default: 4420].")
@click.option("--node", metavar="NAME", help="Check this node of the cluster, by kubectl, in the Pod of its agent.")
@click.option("--namespace", default="quarry-system", show_default=True, help="Where that Pod is.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@output_option
@log_options("error")
def doctor(
    purpose: str | None,
    node: str | None,
    output: str,
    **options: Any,
) -> None:
    """Check what Quarry needs of this machine: kernel, modules, hugepages, programs, target, ports, agent, kubelet.

    Each check says pass, warn or fail, what was found, and the remedy. Changes nothing. Exit code 1 when any fails.
    """
    ctx = click.get_current_context()
    configure_logs(options.pop("log_level"), options.pop("log_format"))
    namespace, context = options.pop("namespace"), options.pop("context")
    if node is not None:
        report = _of_node(node, namespace, context, purpose)
    elif ctx.find_root().info_name == PLUGIN:
        raise InvalidArgument("--node", "is not given", "name the node to check, as `kubectl get nodes` does")
    else:
        report = _of_machine(purpose, options)
    if output == "json":
        print_json(report)
    else:
        _print(report["checks"])
    ctx.exit(ExitCode.FAILED_CHECK if report["result"] == "fail" else ExitCode.OK)


def _of_machine(purpose: str | None, options: dict[str, Any]) -> dict[str, Any]:
    import asyncio

    import msgspec

    from agent.config.settings import load_settings
    from agent.diag.doctor.checks import examine
    from agent.diag.doctor.findings import worst
    from agent.diag.doctor.gather import Subject, gather

    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
    defaults = IN_CLUSTER if in_cluster and options["config"] is None else {}
    given = {key: value for key, value in options.items() if key != "config" and value is not None}
    settings = load_settings(options["config"], **{**defaults, **given})
    csi_socket = Path(settings.csi_endpoint.removeprefix("unix://"))
    subject = Subject(settings.state_dir, settings.spdk_socket, csi_socket, settings.nvmf_port, in_cluster)
    findings = examine(asyncio.run(gather(subject)), before_agent=purpose is not None)
    return {"result": worst(findings).value, "checks": msgspec.to_builtins(findings)}


def _of_node(node: str, namespace: str, context: str | None, purpose: str | None) -> dict[str, Any]:
    import asyncio

    from agent.cli.kubectl import Kubectl

    command = ["quarry", "doctor", "-o", "json", *(["--for", purpose] if purpose else [])]
    done = asyncio.run(Kubectl(namespace, context).run_in(node, command))
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Unavailable(f"the agent's Pod on node {node} could not check it: {done.stderr.strip()}") from None
    return report


def _print(checks: list[dict[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    styles = {"pass": "green", "warn": "yellow", "fail": "bold red"}
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in checks:
        text = Text(visible(each["found"]))
        if each["remedy"]:
            text.append(f"\n→ {visible(each['remedy'])}", style="dim")
        table.add_row(Text(each["level"], style=styles[each["level"]]), Text(each["check"]), text)
    counts = [f"{sum(each['level'] == level for each in checks)} {level}" for level in styles]
    print_rich(table)
    click.echo(f"\n{', '.join(counts)}")

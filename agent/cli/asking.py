"""How commands ask a running agent: over its local HTTP endpoint, or through the Kubernetes API by `kubectl`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from agent.cli.paths import PATH
from agent.diag import ENDPOINT_FILE
from agent.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable, shorten

F = TypeVar("F", bound=Callable[..., Any])

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 15.0
"""Longer than the endpoint takes for anything."""

PLUGIN = "kubectl-quarry"
"""Name of the program as a plugin of kubectl: then agents are looked for in the cluster."""

_PASSED = ("state_dir", "url", "node", "namespace", "context")


@dataclass(frozen=True, slots=True)
class Where:
    """Which agent is asked. `node`: that of a node of the cluster; with `in_cluster` and no node: the controller."""

    state_dir: Path
    url: str | None = None
    node: str | None = None
    namespace: str = "quarry-system"
    context: str | None = None
    in_cluster: bool = False

    @property
    def is_local(self) -> bool:
        return self.url is None and not self.in_cluster


def where_options(command: F) -> F:
    """--state-dir, --url, --node, --namespace and --context; the command gets them as `where`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _PASSED}
        if given["url"] and given["node"]:
            raise InvalidArgument("--url", "names another agent than --node", "give one of them")
        as_plugin = click.get_current_context().find_root().info_name == PLUGIN
        in_cluster = given["url"] is None and (as_plugin or given["node"] is not None)
        return command(*args, where=Where(**given, in_cluster=in_cluster), **kwargs)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options = (
        click.option(
            "--state-dir",
            type=PATH,
            default=Path("/var/lib/quarry"),
            show_default=True,
            metavar="DIR",
            help="State folder of the agent on this machine.",
        ),
        click.option("--url", metavar="URL", help="Endpoint of the agent, instead of the one in the state folder."),
        click.option("--node", metavar="NAME", help="Ask the agent of this node of the cluster, by kubectl."),
        click.option("--namespace", default="quarry-system", show_default=True, help="Where its Pods are."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
    )
    result: Any = wrapped
    for option in reversed(options):
        result = option(result)
    return result  # type: ignore[no-any-return]


def all_of(where: Where, kind: str) -> list[dict[str, Any]]:
    """All resources of a kind. Raises Unavailable with the remedy when no agent answers."""
    items: list[dict[str, Any]] = _asked(where, f"/v1/{kind}")["items"]
    return items


def one_of(where: Where, kind: str, name: str) -> dict[str, Any]:
    """One resource with what is related to it. Raises NotFound."""
    found: dict[str, Any] = _asked(where, f"/v1/{kind}/{quote(name, safe='/')}")
    return found


def endpoint_of(state_dir: Path) -> str:
    """The URL of the agent that runs on `state_dir`. Raises Unavailable, FailedPrecondition."""
    file = state_dir / ENDPOINT_FILE
    try:
        return str(json.loads(file.read_text())["url"])
    except FileNotFoundError:
        raise Unavailable(
            f"no agent serves HTTP on {state_dir}: start `quarry standalone`, or give its --state-dir or --url"
        ) from None
    except PermissionError as error:
        raise FailedPrecondition(f"{file} is not yours to read: run this as root, or give --url") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{file} cannot be read: {error}; restart the agent, or give --url") from error


def _asked(where: Where, path: str) -> Any:
    if where.in_cluster:
        from agent.cli.kubectl import Kubectl

        return Kubectl(where.namespace, where.context).asked(where.node, path)
    return _by_http(where.url or endpoint_of(where.state_dir), path)


def _by_http(url: str, path: str) -> Any:
    import requests

    session = requests.Session()
    session.trust_env = False  # no proxy stands between us and this machine
    try:
        answer = session.get(url.rstrip("/") + path, timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S))
    except requests.Timeout as error:
        raise DeadlineExceeded(f"the agent at {url} did not answer in time; see its log") from error
    except requests.ConnectionError as error:
        raise Unavailable(
            f"no agent answers at {url}: start it (`quarry standalone`), or give the right --state-dir or --url"
        ) from error
    except requests.RequestException as error:
        raise InvalidArgument(
            "--url", f"{shorten(url)!r} cannot be asked: {error}", "write http://HOST:PORT"
        ) from error
    try:
        document = answer.json()
    except ValueError as error:
        raise Unavailable(f"what answers at {url} is no agent of Quarry; give the right --url") from error
    if answer.status_code == 404:
        raise NotFound(*_wanted(path))
    if answer.status_code != 200:
        raise Unavailable(f"the agent at {url} says: {document.get('error', answer.reason)}")
    return document


def _wanted(path: str) -> tuple[str, str]:
    """Kind and name in a path of the endpoint."""
    from urllib.parse import unquote

    _, _, kind, *name = path.split("/", 3)
    return (kind.removesuffix("s"), unquote(name[0])) if name else ("kind of resource", kind)

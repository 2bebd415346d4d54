"""Listing and showing one kind of resource as a running agent tells of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from agent.cli.asking import Where, all_of, one_of, where_options
from agent.cli.output import configure_logs, log_options, output_option, print_json
from agent.cli.tables import print_facts, print_listing

F = TypeVar("F", bound=Callable[..., Any])

Document = dict[str, Any]
Facts = Iterable[tuple[str, Iterable[str]]]


def asking_options(command: F) -> F:
    """What says whom to ask, in which form to answer and what to log; the command gets `where` and `output`."""

    @functools.wraps(command)
    def wrapped(*args: Any, log_level: str | None, log_format: str | None, **kwargs: Any) -> Any:
        configure_logs(log_level, log_format)
        return command(*args, **kwargs)

    result: Any = where_options(output_option(log_options("warning")(wrapped)))
    return result  # type: ignore[no-any-return]


def where_options_and_logs(command: F) -> F:
    """`asking_options` of a command that prints no documents; it gets `where`."""

    @functools.wraps(command)
    def wrapped(*args: Any, log_level: str | None, log_format: str | None, **kwargs: Any) -> Any:
        configure_logs(log_level, log_format)
        return command(*args, **kwargs)

    result: Any = where_options(log_options("warning")(wrapped))
    return result  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Kind:
    """`name` is its name in the endpoint's paths; `row` and `facts` put a document of it in words."""

    name: str
    columns: Sequence[str]
    row: Callable[[Document], list[str]]
    facts: Callable[[Document], Facts]
    right: Sequence[str] = ()

    def print_all(self, where: Where, output: str, keep: Callable[[Document], bool] = lambda document: True) -> None:
        """Print all there are that are to be kept."""
        found = [each for each in all_of(where, self.name) if keep(each)]
        if output == "json":
            print_json(found)
        elif found:
            print_listing(self.columns, [self.row(each) for each in found], right=self.right)
        else:
            click.echo(f"no {self.name}")

    def print_one(self, where: Where, name: str, output: str) -> None:
        """Print all that is known of one. Raises NotFound."""
        document = one_of(where, self.name, name)
        if output == "json":
            print_json(document)
        else:
            print_facts(self.facts(document))

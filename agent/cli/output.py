"""What the command prints: errors on stderr, results on stdout as a table or as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from agent.cli import logs
from agent.cli.exit_codes import ExitCode, exit_code
from agent.errors import InvalidArgument, QuarryError

F = TypeVar("F", bound=Callable[..., Any])
_DEBUG = "quarry.debug"


def output_option(command: F) -> F:
    """`-o table|json` for commands with a result."""
    choice = click.Choice(["table", "json"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="Form of the result.")(
        command
    )


def log_options(default_level: str | None) -> Callable[[F], F]:
    """--log-level, --log-format and --debug. The command gets the first two: None when neither given nor defaulted."""

    def add(command: F) -> F:
        level = click.option(
            "--log-level", type=click.Choice(logs.LEVELS), default=default_level, help="Least severe message logged."
        )
        fmt = click.option("--log-format", type=click.Choice(logs.FORMATS), default=None, help="Form of log lines.")
        debug = click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_remember_debug,
            help="Log everything and show tracebacks.",
        )
        return level(fmt(debug(command)))

    return add


def _remember_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[_DEBUG] = value


def configure_logs(level: str | None, fmt: str | None) -> None:
    """Apply the log flags of the running command."""
    debug = click.get_current_context().meta.get(_DEBUG, False)
    logs.configure("debug" if debug else level or "info", fmt or "text")


class ReportingGroup(click.Group):
    """The group whose commands may raise: the one place where exceptions become a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own business; the last one is `quarry ... | head`
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except QuarryError as error:
            _report(ctx, _sentence(error), exit_code(error))
        except Exception as error:  # noqa: BLE001 - outermost layer: a defect becomes a line, the trace on request
            line = (
                f"defect: {type(error).__name__}: {error} (repeat with --debug for the traceback, and please report it)"
            )
            _report(ctx, line, ExitCode.INTERNAL)


def _sentence(error: QuarryError) -> str:
    """One line. InvalidArgument already says "field: problem; remedy"; settings and flags share their names."""
    if isinstance(error, InvalidArgument):
        return " ".join(str(error).split())
    cause = error.__cause__
    text = str(error) or type(error).__name__
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        text += f" ({cause.strerror})"
    return " ".join(text.split())


def _report(ctx: click.Context, line: str, code: ExitCode) -> NoReturn:
    if ctx.meta.get(_DEBUG, False):
        traceback.print_exc(file=sys.stderr)
    click.echo(f"quarry: {line}", err=True)
    ctx.exit(code)


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, default=str, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A plain aligned table on stdout; columns in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())

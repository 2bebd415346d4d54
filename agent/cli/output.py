"""What the command prints: errors on stderr, results on stdout as a table or as JSON."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from agent.cli import logs
from agent.cli.complaints import complaint
from agent.cli.exit_codes import ExitCode
from agent.errors import visible

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
        except Exception as error:  # noqa: BLE001 - outermost layer: everything becomes a line, the trace on request
            if ctx.meta.get(_DEBUG, False):
                traceback.print_exc(file=sys.stderr)
            ctx.exit(_complain(error))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's, on streams that show a character their terminal has not by its number."""
        if type(sys.stdout) is io.TextIOWrapper:
            sys.stdout = _Output(sys.stdout)
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except (_Unwritten, OSError) as error:  # of help, which is printed before any command
            sys.exit(_complain(error))


class _Unwritten(Exception):
    """What was printed is not where it should be; the cause says why."""


class _Output(io.TextIOWrapper):
    """Standard output. Once it fails it is given up: nobody tries again at the end."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)

    def write(self, text: str, /) -> int:
        with self._reporting():
            return super().write(text)

    def flush(self) -> None:
        with self._reporting():
            super().flush()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # `quarry ... | head`: click's own business
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            raise _Unwritten from error


def _complain(error: Exception) -> ExitCode:
    unwritten = isinstance(error, _Unwritten)
    line, code = complaint(error.__cause__ or error if unwritten else error)
    click.echo(f"quarry: {'the output cannot be written: ' if unwritten else ''}{visible(line)}", err=True)
    return code


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    click.echo(logs.shown(json.dumps(document, indent=2, default=str, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A plain aligned table on stdout; columns in `right` are aligned to the right."""
    shown = [[visible(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    for row in shown:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
